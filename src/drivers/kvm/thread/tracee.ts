import { getS32, getS64, getU64, getU64Number, putU32, putU64 } from '../../../abi/bytes.ts';
import { ERRNO, errnoName } from '../../../abi/errno.ts';
import {
  PTRACE,
  PTRACE_EVENT,
  PTRACE_O,
  RESTART,
  SIGNAL,
  SYS,
  USER_REGS,
  USER_REGS_SIZE,
  WAIT,
} from '../../../abi/linux.ts';
import { KvmiError } from '../../../error.ts';
import { check, libc, SystemError, type Word } from '../../../system/libc.ts';
import { tracerOf } from '../../../system/proc.ts';
import { noteEnd } from '../../../system/process-end.ts';

/** How long a thread may take to stop or to carry out an injected system call, in ms. */
const STOP_TIMEOUT_MS = 2000;
const ITIMER_REAL = 0;
const SYSCALL_STOP = 0x80;
/** Size of the signal mask that the kernel has. */
const SIGSET_SIZE = 8;
const SYSCALL_INSTRUCTION_SIZE = 2n;
const SIGINFO_SIZE = 128;
const PEEKSIGINFO_SHARED = 1;

/** Why a traced thread stopped. */
export type StopEvent =
  | { readonly kind: 'gone' }
  /** PTRACE_INTERRUPT took effect, or a thread that was just created. */
  | { readonly kind: 'interrupt' }
  /** The process was stopped by a signal (SIGSTOP). */
  | { readonly kind: 'group-stop' }
  | { readonly kind: 'syscall' }
  | { readonly kind: 'clone'; readonly tid: number }
  | { readonly kind: 'exec' }
  /** A signal is about to be delivered. */
  | { readonly kind: 'signal'; readonly signal: number };

const GONE: StopEvent = { kind: 'gone' };
const INTERRUPT: StopEvent = { kind: 'interrupt' };
const GROUP_STOP: StopEvent = { kind: 'group-stop' };
const SYSCALL: StopEvent = { kind: 'syscall' };

const statusBytes = new Uint8Array(4);
const noTimer = new Uint8Array(32);
const timer = new Uint8Array(32);
let timerReady = false;

/** Makes SIGALRM do nothing but interrupt a wait: its handler is a function of the C library. */
function prepareTimer(): void {
  if (timerReady) return;
  const action = new Uint8Array(152);
  putU64(action, 0, BigInt(libc().dlsym(0, 'abs')));
  check(libc().sigaction(SIGNAL.SIGALRM, action, null), 'sigaction');
  const seconds = Math.floor(STOP_TIMEOUT_MS / 1000);
  putU64(timer, 16, BigInt(seconds));
  // Fires again: the first one may come just before the wait.
  putU64(timer, 8, 10_000n);
  timerReady = true;
}

/** A register of user_regs_struct. */
export type UserRegister = keyof typeof USER_REGS;

export function userRegister(regs: Uint8Array, name: UserRegister): bigint {
  return getU64(regs, USER_REGS[name]);
}

export function putUserRegister(regs: Uint8Array, name: UserRegister, value: bigint): void {
  putU64(regs, USER_REGS[name], value);
}

/**
 * One thread that this thread traces. After a stop was reported it stays stopped until `cont`, `contToSyscall` or
 * `detach`; the other methods that touch it work only while it is stopped.
 */
export class Tracee {
  readonly tid: number;
  /** The registers as of the last `getRegisters`. */
  readonly regs = new Uint8Array(USER_REGS_SIZE);
  stopped = false;
  /** An interrupt was asked for and has not been reported. */
  #interrupted = false;
  /** Another stop came first. It has taken the interrupt with it (ptrace_stop does), which is asked for again. */
  #owed = false;
  #uninterrupted = false;
  /** It is where SIGSTOP has stopped its process. */
  #groupStopped = false;
  /** It has ended, or was detached from. */
  #over = false;

  readonly #options: number;

  private constructor(tid: number, options: number) {
    this.tid = tid;
    this.#options = options;
  }

  /** Starts tracing a thread, which goes on running; with `clones` those that it creates, too. */
  static seize(tid: number, options: number, clones = false): Tracee {
    prepareTimer();
    const result = libc().ptrace(PTRACE.SEIZE, tid, 0, options | (clones ? PTRACE_O.CLONE : 0));
    if (result < 0) throw seizeError(tid, libc().errno());
    return new Tracee(tid, options);
  }

  /** A thread that this one has created and that is traced for it; it has not reported its first stop. */
  created(tid: number): Tracee {
    return new Tracee(tid, this.#options);
  }

  /** Threads that this one creates from now on are not traced. */
  ignoreClones(): void {
    check(libc().ptrace(PTRACE.SETOPTIONS, this.tid, 0, this.#options), 'PTRACE_SETOPTIONS');
  }

  /** Asks it to stop; the stop is reported as `interrupt`. */
  interrupt(): void {
    if (this.stopped || this.#interrupted) return;
    this.#interrupted = libc().ptrace(PTRACE.INTERRUPT, this.tid, 0, 0) === 0;
  }

  /** Runs something during which interrupts are of no interest: one that is asked for comes afterwards. */
  uninterrupted<T>(run: () => T): T {
    this.#uninterrupted = true;
    try {
      return run();
    } finally {
      this.#uninterrupted = false;
    }
  }

  /** The next stop, if there is one already. */
  poll(): StopEvent | undefined {
    if (this.stopped) return undefined;
    return this.#wait(WAIT.NOHANG);
  }

  /** Waits for the next stop. @throws KvmiError with code E_TIMEOUT. */
  wait(): StopEvent {
    const event = this.#wait(WAIT.NOHANG);
    if (event) return event;
    const { setitimer } = libc();
    setitimer(ITIMER_REAL, timer, null);
    try {
      const later = this.#wait(0);
      if (later) return later;
    } finally {
      setitimer(ITIMER_REAL, noTimer, null);
    }
    throw new KvmiError('E_TIMEOUT', `thread ${this.tid} did not stop within ${STOP_TIMEOUT_MS} ms`, {
      hint: 'It is inside a system call that cannot be interrupted, or the host is overloaded. Try again.',
    });
  }

  #wait(options: number): StopEvent | undefined {
    const { wait4, errno } = libc();
    const deadline = performance.now() + STOP_TIMEOUT_MS;
    for (;;) {
      const tid = wait4(this.tid, statusBytes, options | WAIT.ALL, null);
      if (tid > 0) return this.#event(getS32(statusBytes, 0));
      if (tid === 0) return undefined;
      if (errno() !== ERRNO.EINTR) return this.#gone();
      if (performance.now() >= deadline) return undefined;
    }
  }

  #gone(): StopEvent {
    this.#over = true;
    return GONE;
  }

  #event(status: number): StopEvent {
    if ((status & 0xff) !== 0x7f) {
      noteEnd(this.tid, status);
      return this.#gone();
    }
    this.stopped = true;
    const signal = (status >> 8) & 0xff;
    const kind = status >> 16;
    const isStop = kind === PTRACE_EVENT.STOP;
    this.#groupStopped = isStop && signal !== SIGNAL.SIGTRAP;
    const asked = this.#interrupted || this.#owed;
    this.#interrupted = false;
    // Resumed, a thread of a stopped process runs: it is to stop again at once.
    this.#owed = this.#groupStopped || (asked && (!isStop || this.#uninterrupted));
    switch (kind) {
      case PTRACE_EVENT.STOP:
        return this.#groupStopped ? GROUP_STOP : INTERRUPT;
      case PTRACE_EVENT.CLONE:
        return { kind: 'clone', tid: this.#eventMessage() };
      case PTRACE_EVENT.EXEC:
        return { kind: 'exec' };
      default:
        if (signal === (SIGNAL.SIGTRAP | SYSCALL_STOP)) return SYSCALL;
        return { kind: 'signal', signal };
    }
  }

  #eventMessage(): number {
    const message = new Uint8Array(8);
    libc().ptraceBytes(PTRACE.GETEVENTMSG, this.tid, 0, message);
    return getU64Number(message, 0);
  }

  /** Lets it run, delivering `signal`. */
  cont(signal = 0): void {
    this.#resume(PTRACE.CONT, signal);
  }

  /** Lets it run up to its next system call, or to the end of the one that it is in. */
  contToSyscall(signal = 0): void {
    this.#resume(PTRACE.SYSCALL, signal);
  }

  /** Lets a thread of a stopped process stay stopped, until SIGCONT. */
  listen(): void {
    if (this.#groupStopped) this.#resume(PTRACE.LISTEN, 0);
    else this.cont();
  }

  detach(signal = 0): void {
    this.#over = this.#resume(PTRACE.DETACH, signal);
  }

  /** Detaches from a thread that runs, as soon as it has stopped for it. */
  release(): void {
    for (;;) {
      if (!this.stopped) this.interrupt();
      const event = this.wait();
      if (event.kind === 'gone') return;
      if (event.kind === 'interrupt' || event.kind === 'group-stop') break;
      this.cont(event.kind === 'signal' ? event.signal : 0);
    }
    this.detach();
  }

  /**
   * Waits for the end of a thread that is being killed and is still traced: its process does not end before its tracer
   * has. Nothing happens when it has been detached from. @throws KvmiError with code E_TIMEOUT.
   */
  reap(): void {
    while (!this.#over && this.wait().kind !== 'gone') this.cont();
  }

  /** False when the thread is being killed, and tells of its end only. */
  #resume(request: number, signal: number): boolean {
    this.stopped = false;
    if (this.#owed && !this.#uninterrupted && (request === PTRACE.CONT || request === PTRACE.SYSCALL)) {
      this.#owed = false;
      // Before it is resumed, so that it gets nowhere.
      this.interrupt();
    }
    if (libc().ptrace(request, this.tid, 0, signal) >= 0) return true;
    const errno = libc().errno();
    if (errno === ERRNO.ESRCH) return false;
    throw new SystemError(`ptrace(${request}) of thread ${this.tid}`, errno);
  }

  getRegisters(): Uint8Array {
    check(libc().ptraceBytes(PTRACE.GETREGS, this.tid, 0, this.regs), `registers of thread ${this.tid}`);
    return this.regs;
  }

  setRegisters(regs: Uint8Array): void {
    check(libc().ptraceBytes(PTRACE.SETREGS, this.tid, 0, regs), `registers of thread ${this.tid}`);
  }

  getSignalMask(): Uint8Array {
    const mask = new Uint8Array(SIGSET_SIZE);
    check(libc().ptraceBytes(PTRACE.GETSIGMASK, this.tid, SIGSET_SIZE, mask), 'PTRACE_GETSIGMASK');
    return mask;
  }

  setSignalMask(mask: Uint8Array): void {
    check(libc().ptraceBytes(PTRACE.SETSIGMASK, this.tid, SIGSET_SIZE, mask), 'PTRACE_SETSIGMASK');
  }

  /** Whether a signal waits for this thread, or for its process. */
  hasPendingSignal(): boolean {
    const peek = new Uint8Array(16);
    const info = new Uint8Array(SIGINFO_SIZE);
    const address = libc().addressOf(peek);
    for (const flags of [0, PEEKSIGINFO_SHARED]) {
      putU32(peek, 8, flags);
      putU32(peek, 12, 1);
      if (libc().ptraceBytes(PTRACE.PEEKSIGINFO, this.tid, address, info) > 0) return true;
    }
    return false;
  }

  /**
   * Carries out one system call in this thread, which stays as it was otherwise. `instruction` is the address of
   * any `syscall` instruction in it.
   *
   * @returns what the call returns: a negative error number when it fails.
   */
  inject(instruction: bigint, nr: number, ...args: readonly Word[]): bigint {
    return this.uninterrupted(() => this.#inject(instruction, nr, args));
  }

  #inject(instruction: bigint, nr: number, args: readonly Word[]): bigint {
    const saved = Uint8Array.from(this.getRegisters());
    const mask = this.getSignalMask();
    this.setSignalMask(ALL_BUT_SIGTRAP);
    try {
      const regs = Uint8Array.from(saved);
      putUserRegister(regs, 'rip', instruction);
      putUserRegister(regs, 'rax', BigInt(nr));
      putUserRegister(regs, 'orig_rax', -1n);
      for (let i = 0; i < ARGUMENTS.length; i++) putUserRegister(regs, ARGUMENTS[i]!, BigInt(args[i] ?? 0));
      this.setRegisters(regs);
      this.#throughSyscallStop();
      this.#throughSyscallStop();
      return getS64(this.getRegisters(), USER_REGS.rax);
    } finally {
      this.setRegisters(withRestart(saved));
      this.setSignalMask(mask);
    }
  }

  #throughSyscallStop(): void {
    let event: StopEvent;
    do {
      this.contToSyscall();
      event = this.wait();
    } while (event.kind === 'interrupt' || event.kind === 'group-stop');
    if (event.kind !== 'syscall') {
      throw new KvmiError('E_TRACE', `thread ${this.tid}: ${event.kind} during an injected system call`);
    }
  }
}

const ARGUMENTS: readonly UserRegister[] = ['rdi', 'rsi', 'rdx', 'r10', 'r8', 'r9'];
const ALL_BUT_SIGTRAP = Uint8Array.of(0xef, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff);

/** Takes the registers of a thread in an ioctl back to before it: the thread makes the call again, or for the first time. */
export function rewindIoctl(regs: Uint8Array): void {
  putUserRegister(regs, 'rip', userRegister(regs, 'rip') - SYSCALL_INSTRUCTION_SIZE);
  putUserRegister(regs, 'rax', BigInt(SYS.ioctl));
  putUserRegister(regs, 'orig_rax', -1n);
}

/**
 * The registers of an interrupted system call as the kernel would leave them if it had restarted the call itself,
 * which it no longer does once the registers were changed.
 */
export function withRestart(regs: Uint8Array): Uint8Array {
  const nr = getS64(regs, USER_REGS.orig_rax);
  if (nr < 0n) return regs;
  const result = getS64(regs, USER_REGS.rax);
  const restarted = Uint8Array.from(regs);
  if (result === RESTART.SYS || result === RESTART.NOINTR || result === RESTART.NOHAND) {
    putUserRegister(restarted, 'rax', nr);
  } else if (result === RESTART.BLOCK) {
    putUserRegister(restarted, 'rax', BigInt(SYS.restart_syscall));
  } else {
    return regs;
  }
  putUserRegister(restarted, 'rip', userRegister(regs, 'rip') - SYSCALL_INSTRUCTION_SIZE);
  putUserRegister(restarted, 'orig_rax', -1n);
  return restarted;
}

/** What throws when another process traces `what`: a thread has one tracer. */
export function tracedAlready(what: string, tracer: number): KvmiError {
  return new KvmiError('E_BUSY', `process ${tracer} traces ${what} already`, {
    hint: 'A thread has one tracer. Detach the debugger, or end the other kvmi.',
    data: { holder: tracer },
  });
}

function seizeError(tid: number, errno: number): KvmiError {
  if (errno === ERRNO.EPERM || errno === ERRNO.EACCES) {
    const tracer = tracerOf(tid);
    if (tracer !== undefined) return tracedAlready(`thread ${tid}`, tracer);
    return new KvmiError('E_PERMISSION', `thread ${tid} may not be traced: ${errnoName(errno)}`, {
      hint: 'Run as root or with CAP_SYS_PTRACE. kvmi doctor tells more.',
      data: { errno },
    });
  }
  return new SystemError(`tracing thread ${tid}`, errno);
}

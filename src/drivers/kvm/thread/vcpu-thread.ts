import { getS64, getU32, getU64, putU32 } from '../../../abi/bytes.ts';
import { ERRNO } from '../../../abi/errno.ts';
import { KVM, KVM_EXIT } from '../../../abi/kvm.ts';
import { PTRACE, SIGNAL, SYS, USER_REGS } from '../../../abi/linux.ts';
import { libc } from '../../../system/libc.ts';
import type { Call, Slot } from './agent.ts';
import { COMMAND, SLOT } from './agent-code.ts';
import type { RunPage } from './run-page.ts';
import {
  putUserRegister,
  rewindIoctl,
  type StopEvent,
  type Tracee,
  userRegister,
  withRestart,
} from './tracee.ts';

const EINTR = BigInt(-ERRNO.EINTR);
const ENOSYS = BigInt(-ERRNO.ENOSYS);
const SYSCALL_SIZE = 2n;
const SYSCALL_ENTRY = 1;
const DETACH_TIMEOUT_MS = 2000;

/**
 * Where the thread of a vCPU is.
 *
 * - `free`: it runs as if nobody traced it.
 * - `catching`: it stops at each system call, until it enters KVM_RUN.
 * - `agent`: it is in the agent, which runs the guest.
 * - `held`: it is stopped, and the vCPU is outside the guest with nothing pending.
 * - `gone`: it has ended.
 */
export type Phase = 'free' | 'catching' | 'agent' | 'held' | 'gone';

/** Why a thread was held: something armed has fired, or it was asked to stop. */
export type HoldReason = 'exit' | 'request';

/** What a vCPU's thread is controlled by. */
export interface ThreadOwner {
  /** Something is armed: KVM_RUN is to be interposed on. */
  readonly armed: boolean;
  /** Somebody wants the vCPU outside the guest. */
  readonly wanted: boolean;
  /** KVM_RUN has to be called again before the state is that between two instructions. */
  readonly exitPending: boolean;
  /** Whether an exit that is none of those that the agent looks for is ours nevertheless. */
  claims(): boolean;
  /** The thread is held; it goes on after `release`. */
  held(reason: HoldReason): void;
  /** The thread has left the guest, for whatever reason. */
  left(): void;
  /**
   * Writes what is armed into the slot. Called only before the agent arms it: until then it is what KVM has, by which
   * the agent tells its own exits from those of the VMM.
   */
  prepareEntry(): void;
  gone(): void;
}

/** A stopped thread of a VMM, and what it shares with its tracer. */
export interface TracedThread {
  readonly tracee: Tracee;
  readonly slot: Slot;
  readonly page: RunPage;
  /** The VMM. */
  readonly pid: number;
  /** The vCPU's descriptor in the VMM. */
  readonly fd: number;
  readonly confined: boolean;
}

/**
 * The thread that runs a vCPU, traced.
 *
 * The guest runs under KVM_RUN of the VMM itself as long as nothing is armed. Otherwise the thread is sent into
 * the agent whenever it is about to enter KVM_RUN.
 */
export class VcpuThread {
  readonly tracee: Tracee;
  readonly slot: Slot;
  readonly page: RunPage;
  readonly fd: number;
  phase: Phase = 'free';
  /** Whether the agent holds the thread's registers; else the VMM is where it stopped. */
  #inAgent = false;
  /** Whether calls have left the thread with its signals blocked. */
  #masked = false;
  /** Whether the registers in the page are those of this stop. */
  synced = false;
  /** Whether the agent has read the MSRs of its table in this stop. */
  msrsRead = false;
  /** What is armed has changed since the agent armed it. */
  changed = true;
  /** The agent must not be left alone in it: see {@link isConfined}. */
  readonly confined: boolean;
  /** The stop was taken where the VMM waits in a system call of its own. */
  parked = false;
  #posted = 0;
  #kicked = false;
  #vmmImmediateExit = 0;
  #reason: HoldReason = 'request';
  readonly #owner: ThreadOwner;

  constructor(owner: ThreadOwner, { tracee, slot, page, pid, fd, confined }: TracedThread) {
    this.#owner = owner;
    this.tracee = tracee;
    this.slot = slot;
    this.page = page;
    this.fd = fd;
    this.confined = confined;
    putU32(slot.bytes, SLOT.vcpuFd, fd);
    putU32(slot.bytes, SLOT.tid, tracee.tid);
    putU32(slot.bytes, SLOT.pid, pid);
    this.#posted = getU32(slot.bytes, SLOT.posted);
  }

  /** Makes the thread report: because something is wanted or armed now, or no longer. */
  kick(): void {
    if (this.phase !== 'free' && this.phase !== 'agent') return;
    this.page.publish = true;
    this.tracee.interrupt();
  }

  /** Handles a stop of the thread. */
  stopped(event: StopEvent): void {
    switch (event.kind) {
      case 'gone':
        this.phase = 'gone';
        this.#owner.gone();
        return;
      case 'group-stop':
        this.#groupStopped();
        return;
      case 'signal':
        this.#signal(event.signal);
        return;
      case 'interrupt':
        this.#interrupted();
        return;
      case 'syscall':
        this.#syscall();
        return;
      default:
        this.#goOn();
    }
  }

  /** Lets the thread run on in the phase that it is in. */
  #goOn(signal = 0): void {
    if (this.phase === 'catching') this.tracee.contToSyscall(signal);
    else this.tracee.cont(signal);
  }

  #signal(signal: number): void {
    const posted = getU32(this.slot.bytes, SLOT.posted);
    if (this.phase !== 'agent' || signal !== SIGNAL.SIGURG || posted === this.#posted) {
      this.#goOn(signal);
      return;
    }
    this.#posted = posted;
    this.#agentPosted();
  }

  /** The agent has stopped: one of the exits that it looks for, or one that is the VMM's. */
  #agentPosted(): void {
    this.#owner.left();
    this.#unkick();
    const result = getS64(this.slot.bytes, SLOT.result);
    if (result === 0n && this.#isOurs(this.page.exitReason)) {
      this.msrsRead = true;
      this.#hold('exit');
    } else if (result === 0n && this.#owner.claims()) {
      // The agent has disarmed.
      this.changed = true;
      this.#hold('exit');
    } else if (result === EINTR && this.#kicked && !this.tracee.hasPendingSignal()) {
      this.#hold('request');
    } else {
      this.#leaveToVmm(result);
    }
  }

  #isOurs(exitReason: number): boolean {
    return exitReason < 64 && ((getU64(this.slot.bytes, SLOT.exitMask) >> BigInt(exitReason)) & 1n) === 1n;
  }

  #unkick(): void {
    if (this.#kicked) this.page.immediateExit = this.#vmmImmediateExit;
  }

  /** Makes the next KVM_RUN complete what is pending and come back at once. */
  #kickRun(): void {
    if (!this.#kicked) this.#vmmImmediateExit = this.page.immediateExit;
    this.#kicked = true;
    this.page.immediateExit = 1;
    this.page.publish = true;
  }

  #hold(reason: HoldReason): void {
    this.phase = 'held';
    this.#reason = reason;
    this.#kicked = false;
    this.synced = this.page.publish && !this.parked;
    this.#owner.held(reason);
  }

  #interrupted(): void {
    this.#owner.left();
    if (this.phase === 'agent') {
      // The agent reports by itself once KVM_RUN has come back.
      this.#kickRun();
      this.tracee.cont();
      return;
    }
    const regs = this.tracee.getRegisters();
    const result = getS64(regs, USER_REGS.rax);
    if (this.#isRun(regs) && result === EINTR && !this.tracee.hasPendingSignal()) {
      this.#saveForRerun(regs);
      this.#hold('request');
      return;
    }
    this.#catch();
  }

  /** Stops the thread at its next entry to KVM_RUN, if anybody needs that. */
  #catch(): void {
    if (this.#owner.wanted || this.#owner.armed) {
      this.phase = 'catching';
      this.tracee.contToSyscall();
    } else {
      this.#free();
    }
  }

  #free(): void {
    this.phase = 'free';
    this.page.publish = false;
    this.tracee.cont();
  }

  #syscall(): void {
    const regs = this.tracee.getRegisters();
    if (!this.#isRun(regs) || !this.#atEntry(regs)) {
      this.#catch();
      return;
    }
    if (!this.#owner.wanted && !this.#owner.armed) {
      this.#free();
      return;
    }
    rewindIoctl(regs);
    this.slot.save(regs, this.tracee.getSignalMask());
    if (this.#owner.wanted) this.#kickRun();
    this.#enterAgent();
  }

  #atEntry(regs: Uint8Array): boolean {
    if (getS64(regs, USER_REGS.rax) !== ENOSYS) return false;
    const info = new Uint8Array(96);
    libc().ptraceBytes(PTRACE.GET_SYSCALL_INFO, this.tracee.tid, info.length, info);
    return info[0] === SYSCALL_ENTRY;
  }

  /** Whether the thread is in, or has just come out of, KVM_RUN on this vCPU. */
  #isRun(regs: Uint8Array): boolean {
    return (
      getS64(regs, USER_REGS.orig_rax) === BigInt(SYS.ioctl) &&
      getU32(regs, USER_REGS.rsi) === KVM.RUN &&
      getU32(regs, USER_REGS.rdi) === this.fd
    );
  }

  /** Keeps the registers such that the VMM's KVM_RUN is made again, as if it had not been interrupted. */
  #saveForRerun(regs: Uint8Array): void {
    const saved = Uint8Array.from(regs);
    rewindIoctl(saved);
    this.slot.save(saved, this.tracee.getSignalMask());
  }

  /** Holds a thread that waits in a system call of the VMM: a vCPU that the VMM has paused. */
  park(): void {
    while (this.phase === 'catching' && !this.tracee.stopped) {
      this.tracee.interrupt();
      const event = this.tracee.wait();
      if (event.kind !== 'interrupt') {
        this.stopped(event);
        continue;
      }
      const regs = this.tracee.getRegisters();
      if (getS64(regs, USER_REGS.orig_rax) < 0n || this.#isRun(regs) || !this.#parkAt(regs)) this.#catch();
      return;
    }
  }

  /** Holds the thread outside KVM_RUN; false when the vCPU is not between two instructions. */
  #parkAt(regs: Uint8Array): boolean {
    if (this.#owner.exitPending) return false;
    this.slot.save(withRestart(regs), this.tracee.getSignalMask());
    this.parked = true;
    this.#hold('request');
    return true;
  }

  /** SIGSTOP has stopped the VMM: what is wanted is done, and the thread stays stopped. */
  #groupStopped(): void {
    this.#owner.left();
    const served = this.#owner.wanted && this.phase !== 'agent' && this.#parkAt(this.tracee.getRegisters());
    if (!served) this.tracee.listen();
  }

  /** Carries out system calls in the held thread. */
  call(calls: readonly Call[]): bigint[] {
    const results = this.slot.call(this.tracee, calls);
    this.#posted = getU32(this.slot.bytes, SLOT.posted);
    this.#inAgent = true;
    this.#masked = true;
    if (this.confined) this.#leaveAgent(this.slot.saved);
    return results;
  }

  /** Lets the held thread go on: into the guest through the agent while something is armed, else as the VMM left it. */
  release(): void {
    this.msrsRead = false;
    if (this.#owner.armed && !this.parked) {
      this.#enterAgent();
      return;
    }
    if (this.#reason === 'exit') this.call([debugOff(this)]);
    this.#restore(this.slot.saved);
    if (this.#owner.armed) this.#catch();
    else this.#free();
  }

  /** Ends the guest for the VMM: KVM_RUN returns KVM_EXIT_SHUTDOWN. */
  crash(): void {
    if (this.#reason === 'exit') this.call([debugOff(this)]);
    this.page.exitReason = KVM_EXIT.SHUTDOWN;
    this.#leaveToVmm(0n);
  }

  /** Holds the thread, waiting for it; false when it does not come. It is handled as any other hold. */
  holdNow(): boolean {
    return this.#pumpUntil(() => this.phase === 'held');
  }

  /** Handles stops of the thread until `done`, asking for them. */
  #pumpUntil(done: () => boolean): boolean {
    const deadline = performance.now() + DETACH_TIMEOUT_MS;
    while (!done() && this.phase !== 'gone') {
      if (performance.now() > deadline) return false;
      if (!this.tracee.stopped) this.tracee.interrupt();
      const event = this.tracee.wait();
      if (event.kind === 'group-stop' && this.phase === 'agent') this.#interrupted();
      else this.stopped(event);
    }
    return done();
  }

  /** Takes the thread out of the agent, when nothing is armed or wanted any more, and leaves it stopped. */
  bringHome(): boolean {
    const home = (): boolean => {
      if (this.phase === 'held') this.release();
      return this.phase === 'free' || this.phase === 'catching';
    };
    return this.tracee.uninterrupted(() => this.#pumpUntil(home) && this.#standStill());
  }

  /** Stops the thread in the VMM's own code, where it can be left alone. */
  #standStill(): boolean {
    const deadline = performance.now() + DETACH_TIMEOUT_MS;
    while (performance.now() < deadline) {
      this.tracee.interrupt();
      const event = this.tracee.wait();
      if (event.kind === 'gone') return false;
      if (event.kind === 'group-stop') return true;
      if (event.kind === 'interrupt') {
        this.#hideInterruption();
        return true;
      }
      this.tracee.cont(event.kind === 'signal' ? event.signal : 0);
    }
    return false;
  }

  #hideInterruption(): void {
    const regs = this.tracee.getRegisters();
    const interrupted = this.#isRun(regs) && getS64(regs, USER_REGS.rax) === EINTR;
    if (!interrupted || this.tracee.hasPendingSignal()) return;
    this.#saveForRerun(regs);
    this.tracee.setRegisters(this.slot.saved);
  }

  /** Detaches from the stopped thread, which goes on as if it had never been traced. */
  letGo(): void {
    this.page.publish = false;
    this.tracee.detach();
    this.page.close();
    this.phase = 'gone';
  }

  #leaveToVmm(result: bigint): void {
    const regs = Uint8Array.from(this.slot.saved);
    putUserRegister(regs, 'rip', userRegister(regs, 'rip') + SYSCALL_SIZE);
    putUserRegister(regs, 'rax', result);
    this.#kicked = false;
    this.#restore(regs);
    this.#catch();
  }

  #restore(regs: Uint8Array): void {
    this.#leaveAgent(regs);
    this.parked = false;
  }

  #leaveAgent(regs: Uint8Array): void {
    this.tracee.setRegisters(regs);
    this.tracee.setSignalMask(this.slot.savedMask);
    this.#inAgent = false;
    this.#masked = false;
  }

  #enterAgent(): void {
    this.phase = 'agent';
    this.page.publish = true;
    if (this.changed || !this.#inAgent) this.#owner.prepareEntry();
    if (this.#inAgent) {
      const asBefore = this.#reason === 'exit' && !this.changed;
      putU32(this.slot.bytes, SLOT.command, asBefore ? COMMAND.again : COMMAND.run);
    } else {
      this.tracee.getRegisters();
      this.slot.enter(this.tracee, 'run');
    }
    if (!this.#inAgent || this.#masked) this.tracee.setSignalMask(withoutSigurg(this.slot.savedMask));
    this.#inAgent = true;
    this.#masked = false;
    this.changed = false;
    this.tracee.cont();
  }
}

function debugOff(thread: VcpuThread): Call {
  return [SYS.ioctl, thread.fd, KVM.SET_GUEST_DEBUG, thread.slot.address + SLOT.debugOff];
}

function withoutSigurg(mask: Uint8Array): Uint8Array {
  const without = Uint8Array.from(mask);
  without[2] = without[2]! & ~(1 << (SIGNAL.SIGURG - 17));
  return without;
}

import { ERRNO } from '../../../abi/errno.ts';
import { KVM } from '../../../abi/kvm.ts';
import { SYS } from '../../../abi/linux.ts';
import { KvmiError } from '../../../error.ts';
import { userThreads } from '../../../system/proc.ts';
import { putUserRegister, type StopEvent, type Tracee, type UserRegister, userRegister } from './tracee.ts';
import type { Vmm } from './vmm.ts';

const EINTR = BigInt(-ERRNO.EINTR);
const SYSCALL_INSTRUCTION_SIZE = 2n;

interface Stopped {
  readonly tracee: Tracee;
  /** A signal that was about to be delivered. */
  readonly signal: number;
}

/** Every thread of a VMM, stopped: nothing of it runs until `release`. */
export class StoppedThreads {
  readonly #stopped: Stopped[] = [];

  /** @throws KvmiError when a thread may not be traced; nothing is stopped then. */
  static stop(vmm: Vmm): StoppedThreads {
    const threads = new StoppedThreads();
    try {
      while (threads.#stopMore(vmm));
      return threads;
    } catch (error) {
      threads.release();
      throw error;
    }
  }

  /** False when there are no threads that run: those that it had may have created others. */
  #stopMore(vmm: Vmm): boolean {
    const known = new Set(this.#stopped.map(({ tracee }) => tracee.tid));
    const fresh = userThreads(vmm.pid).filter((tid) => !known.has(tid));
    const interrupted: Tracee[] = [];
    try {
      for (const tid of fresh) interrupted.push(vmm.trace(tid));
    } finally {
      for (const tracee of interrupted) this.#take(tracee);
    }
    return fresh.length > 0;
  }

  #take(tracee: Tracee): void {
    const event = stopOf(tracee);
    if (event.kind !== 'gone')
      this.#stopped.push({ tracee, signal: event.kind === 'signal' ? event.signal : 0 });
  }

  /** One of them, to carry out system calls in. */
  get first(): Tracee {
    const [stopped] = this.#stopped;
    if (!stopped) throw new KvmiError('E_NO_VM', 'the VMM has ended');
    return stopped.tracee;
  }

  release(): void {
    for (const { tracee, signal } of this.#stopped.splice(0)) letGo(tracee, signal);
  }
}

/** A thread stops in the end, however long it takes on a busy host; left alone it would stay stopped then. */
export function stopOf(tracee: Tracee): StopEvent {
  for (;;) {
    try {
      return tracee.wait();
    } catch (error) {
      if (!(error instanceof KvmiError && error.code === 'E_TIMEOUT')) throw error;
    }
  }
}

/** The descriptor of the vCPU that a stopped thread runs; undefined when it was not in KVM_RUN. */
export function runningVcpu(tracee: Tracee): number | undefined {
  const regs = tracee.getRegisters();
  const is = (name: UserRegister, value: number): boolean => userRegister(regs, name) === BigInt(value);
  return is('orig_rax', SYS.ioctl) && is('rsi', KVM.RUN) ? Number(userRegister(regs, 'rdi')) : undefined;
}

/** Lets a stopped thread go on; that a KVM_RUN of its VMM was interrupted is hidden from the VMM. */
export function letGo(tracee: Tracee, signal: number): void {
  const inRun = runningVcpu(tracee) !== undefined;
  const { regs } = tracee;
  const interrupted = inRun && BigInt.asIntN(64, userRegister(regs, 'rax')) === EINTR;
  // A signal that waits may be what the VMM wants KVM_RUN to be interrupted by.
  if (interrupted && signal === 0 && !tracee.hasPendingSignal()) {
    putUserRegister(regs, 'rax', BigInt(SYS.ioctl));
    putUserRegister(regs, 'rip', userRegister(regs, 'rip') - SYSCALL_INSTRUCTION_SIZE);
    putUserRegister(regs, 'orig_rax', -1n);
    tracee.setRegisters(regs);
  }
  tracee.detach(signal);
}

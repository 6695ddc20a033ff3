import { ERRNO } from '../../../abi/errno.ts';
import { KVM } from '../../../abi/kvm.ts';
import { SYS } from '../../../abi/linux.ts';
import { KvmiError } from '../../../error.ts';
import { rewindIoctl, type StopEvent, type Tracee, type UserRegister, userRegister } from './tracee.ts';

const EINTR = BigInt(-ERRNO.EINTR);

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

/** Hides from the VMM that a KVM_RUN of it was interrupted. False when none was, or a signal of the VMM's own did it. */
export function hideInterruption(tracee: Tracee): boolean {
  const inRun = runningVcpu(tracee) !== undefined;
  const { regs } = tracee;
  const interrupted = inRun && BigInt.asIntN(64, userRegister(regs, 'rax')) === EINTR;
  if (!interrupted || tracee.hasPendingSignal()) return false;
  rewindIoctl(regs);
  tracee.setRegisters(regs);
  return true;
}

/** Lets a stopped thread go on, with a `signal` or 0. */
export function letGo(tracee: Tracee, signal: number): void {
  if (signal === 0) hideInterruption(tracee);
  tracee.detach(signal);
}

import { getS64 } from '../../../abi/bytes.ts';
import { ERRNO } from '../../../abi/errno.ts';
import { USER_REGS } from '../../../abi/linux.ts';
import { tracerOf, userThreads } from '../../../system/proc.ts';
import { hideInterruption, letGo, runningVcpu, stopOf } from './stopped-thread.ts';
import { rewindIoctl, type StopEvent, type Tracee } from './tracee.ts';
import type { Vmm } from './vmm.ts';

const ENOSYS = BigInt(-ERRNO.ENOSYS);

/**
 * Catches the thread that runs a vCPU next, whichever that is: every thread of the VMM stops at its system calls, those
 * that it creates meanwhile, too. The thread is stopped before KVM_RUN has done anything.
 */
export class Dragnet {
  readonly #vmm: Vmm;
  readonly #tracees = new Map<number, Tracee>();

  constructor(vmm: Vmm) {
    this.#vmm = vmm;
  }

  /** Whether it is out. */
  get cast(): boolean {
    return this.#tracees.size > 0;
  }

  has(tid: number): boolean {
    return this.#tracees.has(tid);
  }

  /** Puts it out. A thread that is traced already is not in it. */
  put(): void {
    for (let more = true; more; ) {
      more = false;
      for (const tid of userThreads(this.#vmm.pid)) {
        if (this.#tracees.has(tid) || tracerOf(tid) !== undefined) continue;
        this.#tracees.set(tid, this.#vmm.trace(tid, true));
        more = true;
      }
    }
  }

  /**
   * Lets threads go on that are not about to run a vCPU that is `wanted`. One that is goes to `caught`: it is in the VMM's
   * own code, with KVM_RUN as its next instruction.
   */
  poll(
    wanted: (fd: number) => boolean,
    caught: (fd: number, tracee: Tracee, event: StopEvent) => void,
  ): void {
    for (const [tid, tracee] of this.#tracees) {
      const event = tracee.poll();
      if (!event) continue;
      const fd = this.#handle(tid, tracee, event, wanted);
      if (fd !== undefined) caught(fd, tracee, { kind: 'interrupt' });
    }
  }

  /** The vCPU that the thread is about to run, when that is wanted: it stays stopped then. */
  #handle(
    tid: number,
    tracee: Tracee,
    event: StopEvent,
    wanted: (fd: number) => boolean,
  ): number | undefined {
    if (event.kind === 'gone') this.#tracees.delete(tid);
    else if (event.kind === 'group-stop') tracee.listen();
    else if (event.kind === 'signal') tracee.contToSyscall(event.signal);
    else {
      if (event.kind === 'clone') this.#created(tracee, event.tid);
      const fd = runningVcpu(tracee);
      if (fd !== undefined && wanted(fd) && this.#catch(tracee, event)) {
        this.#tracees.delete(tid);
        tracee.ignoreClones();
        return fd;
      }
      if (event.kind === 'interrupt') hideInterruption(tracee);
      tracee.contToSyscall();
    }
    return undefined;
  }

  #created(parent: Tracee, tid: number): void {
    if (!this.#tracees.has(tid)) this.#tracees.set(tid, parent.created(tid));
  }

  /** Takes a thread back to where it makes the system call; false when it comes out of it. */
  #catch(tracee: Tracee, event: StopEvent): boolean {
    if (event.kind === 'interrupt') return hideInterruption(tracee);
    const { regs } = tracee;
    if (event.kind !== 'syscall' || getS64(regs, USER_REGS.rax) !== ENOSYS) return false;
    rewindIoctl(regs);
    tracee.setRegisters(regs);
    tracee.contToSyscall();
    return stopOf(tracee).kind === 'syscall';
  }

  /** Takes it in: the threads that are in it go on untraced. */
  haul(): void {
    for (const [tid, tracee] of this.#tracees) {
      this.#tracees.delete(tid);
      for (;;) {
        if (!tracee.stopped) tracee.interrupt();
        const event = stopOf(tracee);
        if (event.kind === 'gone') break;
        if (event.kind === 'clone') this.#created(tracee, event.tid);
        if (event.kind === 'interrupt' || event.kind === 'group-stop') {
          letGo(tracee, 0);
          break;
        }
        tracee.cont(event.kind === 'signal' ? event.signal : 0);
      }
    }
  }
}

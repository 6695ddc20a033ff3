import { PTRACE_O } from '../../../abi/linux.ts';
import { KvmiError } from '../../../error.ts';
import { readText } from '../../../system/proc.ts';
import { letGo, runningVcpu, stopOf } from './stopped-thread.ts';
import { Tracee } from './tracee.ts';

const FIRST_PAUSE_MS = 20;
const LONGEST_PAUSE_MS = 640;

/**
 * Finds the thread that runs a vCPU where the kernel cannot be asked. What a thread that is running is doing is not in
 * /proc: each is stopped for a moment, to see its system call.
 */
export class RunSearch {
  #next = 0;
  #pause = FIRST_PAUSE_MS;

  /**
   * One of `threads` of process `pid` that is in KVM_RUN of the descriptor `vcpuFd`. Searches become rare when they find
   * nothing, because they cost the VMM something.
   */
  find(pid: number, threads: readonly number[], vcpuFd: number): number | undefined {
    const now = performance.now();
    if (now < this.#next) return undefined;
    const found = threads.filter((tid) => isRunning(pid, tid)).find((tid) => isInRun(tid, vcpuFd));
    this.#pause = found === undefined ? Math.min(this.#pause * 2, LONGEST_PAUSE_MS) : FIRST_PAUSE_MS;
    this.#next = performance.now() + this.#pause;
    return found;
  }
}

function isRunning(pid: number, tid: number): boolean {
  return readText(`/proc/${pid}/task/${tid}/syscall`)?.startsWith('running') === true;
}

function isInRun(tid: number, vcpuFd: number): boolean {
  let tracee: Tracee;
  try {
    tracee = Tracee.seize(tid, PTRACE_O.SYSGOOD);
  } catch (error) {
    // It ended, or is traced by this process already.
    if (error instanceof KvmiError) return false;
    throw error;
  }
  tracee.interrupt();
  const event = stopOf(tracee);
  if (event.kind === 'gone') return false;
  const inRun = runningVcpu(tracee) === vcpuFd;
  letGo(tracee, event.kind === 'signal' ? event.signal : 0);
  return inRun;
}

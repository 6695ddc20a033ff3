import { POLL } from '../abi/linux.ts';
import { libc, openProcess } from './libc.ts';
import { pump } from './pump.ts';

/**
 * Calls `ended` when a process has ended, whether or not its parent has waited for it, and again until the function
 * that is returned is called.
 *
 * @throws SystemError when there is no such process.
 */
export function watchEnd(pid: number, ended: () => void): () => void {
  const pidfd = openProcess(pid);
  const watch = pump.watch(pidfd, POLL.IN, ended);
  let stopped = false;
  return () => {
    if (stopped) return;
    stopped = true;
    watch.stop();
    libc().close(pidfd);
  };
}

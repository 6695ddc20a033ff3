import { getS32 } from '../abi/bytes.ts';
import { POLL, WAIT } from '../abi/linux.ts';
import { deferred } from '../awaitable.ts';
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

/** The wait statuses of children that somebody waits for here, as far as they are known. */
const statuses = new Map<number, number | undefined>();

/** To be called by whoever waits for threads and is told of an end: the kernel tells of each once. */
export function noteEnd(pid: number, status: number): void {
  if (statuses.has(pid)) statuses.set(pid, status);
}

/** Resolves with the wait status of a child that was not started by child_process. */
export function endOf(pid: number): Promise<number> {
  const { promise, resolve } = deferred<number>();
  statuses.set(pid, undefined);
  const stop = watchEnd(pid, () => {
    const bytes = new Uint8Array(4);
    const reaped = libc().wait4(pid, bytes, WAIT.NOHANG | WAIT.ALL, null) === pid;
    const status = reaped ? getS32(bytes, 0) : statuses.get(pid);
    if (status === undefined) return;
    stop();
    statuses.delete(pid);
    resolve(status);
  });
  return promise;
}

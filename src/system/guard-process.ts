import { type ChildProcess, type StdioOptions, spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { KvmiError } from '../error.ts';
import { watchEnd } from './process-end.ts';

const START_TIMEOUT_MS = 10_000;

/**
 * For the script of a {@link GuardProcess}: says that it is ready, and calls `act` when the process that started it has
 * ended.
 */
export function whenEnded(pid: number, act: () => void): void {
  const stop = watchEnd(pid, () => {
    stop();
    act();
  });
  process.stdout.write('ready\n');
}

/**
 * As {@link whenEnded}, and also when that process says that there is nothing more to come ({@link GuardProcess.release}):
 * with true then, and with false when that process is ending, some of whose files may be open for a moment yet.
 * Signals that end a process do nothing to this one from here on.
 */
export function whenReleased(act: (released: boolean) => void): void {
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => {});
  let released = false;
  process.stdin.once('data', () => {
    released = true;
  });
  process.stdin.once('close', () => act(released)).resume();
  process.stdout.write('ready\n');
}

/** Runs a script of this program in a process that does not end with this one, and that this one does not wait for. */
function spawnDetached(script: URL, args: readonly string[], stdio: StdioOptions): ChildProcess {
  const child = spawn(process.execPath, [fileURLToPath(script), ...args], { detached: true, stdio });
  child.unref();
  return child;
}

/** A process that does what is left to do when this one is killed. */
export class GuardProcess {
  readonly #process: ChildProcess;

  private constructor(child: ChildProcess) {
    this.#process = child;
  }

  /**
   * Runs `script` with the pid of this process, `args`, and `descriptors` from 3 on. It is ready, for which it prints
   * something, when the promise resolves.
   *
   * @throws KvmiError with code E_GUARD when it does not start.
   */
  static start(
    script: URL,
    args: readonly (number | string)[],
    ...descriptors: readonly number[]
  ): Promise<GuardProcess> {
    const child = spawnDetached(script, [process.pid, ...args].map(String), [
      'pipe',
      'pipe',
      'ignore',
      ...descriptors,
    ]);
    child.stdin!.on('error', () => {});
    (child.stdin as { unref?: () => void }).unref?.();
    return new Promise((resolve, reject) => {
      const failed = (why: string): void => {
        clearTimeout(timer);
        child.kill('SIGKILL');
        reject(new KvmiError('E_GUARD', `the guard process ${why}`));
      };
      const timer = setTimeout(failed, START_TIMEOUT_MS, `was not ready within ${START_TIMEOUT_MS} ms`);
      child.once('error', (error) => failed(`could not be started: ${error.message}`));
      child.once('exit', () => failed('ended at once'));
      child.stdout!.once('data', () => {
        clearTimeout(timer);
        child.removeAllListeners('exit');
        child.stdout!.destroy();
        resolve(new GuardProcess(child));
      });
    });
  }

  /** `ended` is called once when the guard ends, whoever ended it. */
  onEnd(ended: () => void): void {
    if (this.#process.exitCode !== null || this.#process.signalCode !== null) queueMicrotask(ended);
    else this.#process.once('exit', ended);
  }

  get pid(): number {
    return this.#process.pid!;
  }

  /** The guard does what is left to do, and ends. */
  release(): void {
    this.#process.stdin!.end('released');
  }

  /** There is nothing left to guard. */
  stop(): void {
    this.#process.kill('SIGKILL');
  }
}

import { type ChildProcess, spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { KvmiError } from '../../error.ts';
import type { Journal } from './journal.ts';

const MAIN = fileURLToPath(new URL('./guard-main.js', import.meta.url));
const START_TIMEOUT_MS = 10_000;

/** A process that cleans up after this one when it is killed; see guard-main. */
export class Guard {
  readonly #process: ChildProcess;

  private constructor(child: ChildProcess) {
    this.#process = child;
  }

  /** Starts it; it is ready when the promise resolves. */
  static start(pid: number, vmFd: number, journal: Journal): Promise<Guard> {
    const child = spawn(process.execPath, [MAIN, String(process.pid), String(pid), String(vmFd)], {
      detached: true,
      stdio: ['ignore', 'pipe', 'ignore', journal.fd],
    });
    child.unref();
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
        resolve(new Guard(child));
      });
    });
  }

  /** There is nothing left to guard. */
  stop(): void {
    this.#process.kill('SIGKILL');
  }
}

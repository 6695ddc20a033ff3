import { type ChildProcess, spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { KvmiError } from '../../../error.ts';
import type { Journal } from './journal.ts';

const DISARMING = new URL('./guard-main.js', import.meta.url);
const START_TIMEOUT_MS = 10_000;

/** A process that does what is left to do when this one is killed. */
export class Guard {
  readonly #process: ChildProcess;

  private constructor(child: ChildProcess) {
    this.#process = child;
  }

  /** One that takes back what the journal of a VM names: guard-main. It is ready when the promise resolves. */
  static start(pid: number, vmFd: number, journal: Journal): Promise<Guard> {
    return Guard.run(DISARMING, [pid, vmFd], journal.fd);
  }

  /** One that runs `script` with the pid of this process, `args`, and `descriptors` from 3 on. It prints something when it is ready. */
  static run(script: URL, args: readonly number[], ...descriptors: readonly number[]): Promise<Guard> {
    const path = fileURLToPath(script);
    const child = spawn(process.execPath, [path, String(process.pid), ...args.map(String)], {
      detached: true,
      stdio: ['ignore', 'pipe', 'ignore', ...descriptors],
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

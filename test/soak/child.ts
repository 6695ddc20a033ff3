import { type ChildProcess, spawn } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import { identityOf, type ProcessIdentity } from '../../src/system/proc.ts';

/** In the environment of each process that a soak starts, and of those that they start: whose they are. */
export const MARK = 'KVMI_SOAK_MARK';
/** What is kept of an output: its end. */
const KEPT = 1 << 16;
/** Far more than anything takes, as the machine may be busy. */
export const PATIENCE_MS = 60_000;

/** A Node program of a round. */
export class Child {
  readonly identity: ProcessIdentity;
  readonly #process: ChildProcess;
  readonly #ended: Promise<void>;
  #stdout = '';
  #stderr = '';
  #over = false;

  constructor(args: readonly string[], environment: Readonly<Record<string, string>>) {
    const child = spawn(process.execPath, args, {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, ...environment },
    });
    this.#process = child;
    this.identity = identityOf(child.pid!)!;
    live.add(child);
    child.stdout.on('data', (chunk: Buffer) => {
      this.#stdout = `${this.#stdout}${chunk}`.slice(-KEPT);
    });
    child.stderr.on('data', (chunk: Buffer) => {
      this.#stderr = `${this.#stderr}${chunk}`.slice(-KEPT);
    });
    this.#ended = new Promise((resolve) => {
      // Its guard has its output, too: not `close`.
      child.once('exit', () => {
        live.delete(child);
        this.#over = true;
        resolve();
      });
    });
  }

  get pid(): number {
    return this.identity.pid;
  }

  get stderr(): string {
    return this.#stderr;
  }

  /** Resolves when `pattern` was printed; rejects when the process ends before, or takes too long. */
  async said(pattern: RegExp): Promise<void> {
    for (const deadline = Date.now() + PATIENCE_MS; !pattern.test(this.#stdout); await sleep(5)) {
      if (this.#over || Date.now() > deadline) throw new Error(`a host side did not start: ${this.#stderr}`);
    }
  }

  /** Tells it to end, and waits. False when it does not end. */
  async end(signal: NodeJS.Signals): Promise<boolean> {
    if (!this.#over) this.#process.kill(signal);
    const overdue = new AbortController();
    const late = sleep(PATIENCE_MS, undefined, { signal: overdue.signal, ref: false }).catch(() => {});
    await Promise.race([this.#ended, late]);
    overdue.abort();
    if (this.#over) return true;
    this.#process.kill('SIGKILL');
    await this.#ended;
    return false;
  }
}

const live = new Set<ChildProcess>();
process.on('exit', () => {
  for (const child of live) child.kill('SIGKILL');
});

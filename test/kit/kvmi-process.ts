import { type ChildProcess, spawn } from 'node:child_process';
import { join } from 'node:path';

/** The command. */
export const KVMI = join(import.meta.dirname, '..', '..', '..', 'bin', 'kvmi');
const PATIENCE_MS = 60_000;

/** How a command ended. */
export interface Ended {
  /** The exit code; null when a signal killed it. */
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** The command line as a user runs it: `bin/kvmi` in a process of its own. */
export class KvmiProcess {
  readonly child: ChildProcess;
  stdout = '';
  stderr = '';
  readonly ended: Promise<Ended>;
  #waiters = new Set<() => void>();

  /** `user`: the id of who runs it, this process's user if not given. `leader`: of a process group of its own. */
  constructor(
    args: readonly string[],
    environment: Readonly<Record<string, string>> = {},
    user?: number,
    leader = false,
  ) {
    this.child = spawn(process.execPath, [KVMI, ...args], {
      stdio: ['ignore', 'pipe', 'pipe'],
      detached: leader,
      env: { ...process.env, ...environment },
      ...(user !== undefined && { uid: user, gid: user }),
    });
    live.add(this.child);
    const collect = (stream: 'stdout' | 'stderr') => (chunk: Buffer) => {
      this[stream] += chunk.toString('utf8');
      for (const check of this.#waiters) check();
    };
    this.child.stdout!.on('data', collect('stdout'));
    this.child.stderr!.on('data', collect('stderr'));
    const overdue = setTimeout(() => this.child.kill('SIGKILL'), PATIENCE_MS);
    this.ended = new Promise((resolve) => {
      this.child.once('close', (code) => {
        clearTimeout(overdue);
        live.delete(this.child);
        resolve({ code, stdout: this.stdout, stderr: this.stderr });
        for (const check of this.#waiters) check();
      });
    });
  }

  /** Resolves when `stream` has `count` matches of `pattern`; rejects when the process ends before. */
  async seen(stream: 'stdout' | 'stderr', pattern: RegExp, count = 1): Promise<void> {
    const all = new RegExp(pattern.source, `${pattern.flags.replace('g', '')}g`);
    const matches = () => [...this[stream].matchAll(all)].length >= count;
    let over: Ended | undefined;
    void this.ended.then((ended) => {
      over = ended;
    });
    await new Promise<void>((resolve, reject) => {
      const check = (): void => {
        if (matches()) resolve();
        else if (over)
          reject(new Error(`kvmi ended (${over.code}) before ${pattern}: ${this.stdout}${this.stderr}`));
        else return;
        this.#waiters.delete(check);
      };
      this.#waiters.add(check);
      void this.ended.then(() => queueMicrotask(check));
      check();
    });
  }

  kill(signal: NodeJS.Signals): void {
    this.child.kill(signal);
  }

  /** As a terminal does for Ctrl-C: to every process of the group that it leads. */
  killGroup(signal: NodeJS.Signals): void {
    process.kill(-this.child.pid!, signal);
  }
}

const live = new Set<ChildProcess>();
process.on('exit', () => {
  for (const child of live) child.kill('SIGKILL');
});

/** A user who may nothing. */
export const NOBODY = 65534;

/** Why nothing can be run as another user here; false when it can. To be given to `skip`. */
export function whyNoOtherUser(): string | false {
  return process.getuid?.() === 0 ? false : 'only root can become another user';
}

/** Runs a command to its end, as {@link NOBODY}. */
export function kvmiAsNobody(args: readonly string[]): Promise<Ended> {
  return new KvmiProcess(args, { HOME: '/nonexistent' }, NOBODY).ended;
}

/** Runs a command to its end. */
export function kvmi(
  args: readonly string[],
  environment?: Readonly<Record<string, string>>,
): Promise<Ended> {
  return new KvmiProcess(args, environment).ended;
}

import type { EndReason } from './context.ts';
import { EXIT } from './exit-codes.ts';

/** How a command ends that was told to. */
export const EXIT_OF_END: Readonly<Record<EndReason, number>> = {
  SIGINT: EXIT.interrupted.code,
  SIGTERM: EXIT.terminated.code,
  timeout: EXIT.timeout.code,
  closed: EXIT.ok.code,
};

const SIGNALS: Readonly<Record<string, EndReason>> = {
  SIGINT: 'SIGINT',
  SIGTERM: 'SIGTERM',
  SIGHUP: 'SIGTERM',
};

/** A signal to a group of processes is often passed on by one of them (timeout(1), a shell), and comes twice. */
const ECHO_MS = 100;

/**
 * Turns signals and the time-out into the abortion of one AbortSignal, so that commands unhook on their own way
 * out. While something is being undone a second signal only tells what; otherwise, and for the third time, a signal ends the
 * process at once.
 */
export class Interruption {
  readonly #controller = new AbortController();
  readonly #timer: NodeJS.Timeout | undefined;
  readonly #undoing = new Set<string>();
  #insisted = false;
  #last: { readonly name: string; readonly at: number } | undefined;
  /** Called for a second signal, with what is still to be undone. */
  onInsistence: (undoing: readonly string[]) => void = () => {};
  /** Called when the process is to be stopped (Ctrl-Z), and is not because something would be left undone meanwhile. */
  onRefusedStop: () => void = () => {};

  /**
   * @param timeout in milliseconds; undefined: none.
   * @param signals false: they are left to somebody else.
   */
  constructor(timeout?: number, signals = true) {
    if (signals) {
      for (const name of Object.keys(SIGNALS)) process.on(name, this.#signalled);
      process.on('SIGTSTP', this.#stopped);
    }
    if (timeout !== undefined) this.#timer = setTimeout(() => this.end('timeout'), timeout);
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** Why the command was told to end. */
  get reason(): EndReason | undefined {
    return this.signal.aborted ? (this.signal.reason as EndReason) : undefined;
  }

  /** Announces what is to be undone on the way out, until the function that is returned is called. */
  undoing(what: string): () => void {
    this.#undoing.add(what);
    return () => this.#undoing.delete(what);
  }

  /** Whether nothing that was announced is still to be undone. */
  get undone(): boolean {
    return this.#undoing.size === 0;
  }

  end(reason: EndReason): void {
    if (!this.signal.aborted) this.#controller.abort(reason);
  }

  dispose(): void {
    clearTimeout(this.#timer);
    for (const name of Object.keys(SIGNALS)) process.off(name, this.#signalled);
    process.off('SIGTSTP', this.#stopped);
  }

  /** A guest would stand still as soon as it comes to what is armed. */
  readonly #stopped = (): void => {
    if (this.undone) process.kill(process.pid, 'SIGSTOP');
    else this.onRefusedStop();
  };

  readonly #signalled = (name: string): void => {
    const reason = SIGNALS[name]!;
    const at = performance.now();
    if (name === this.#last?.name && at - this.#last.at < ECHO_MS) return;
    this.#last = { name, at };
    if (!this.signal.aborted) {
      this.end(reason);
      return;
    }
    if (this.#undoing.size === 0 || this.#insisted) process.exit(EXIT_OF_END[reason]);
    this.#insisted = true;
    this.onInsistence([...this.#undoing]);
  };
}

/** Resolves when `signal` is aborted. */
export function whenAborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener('abort', () => resolve(), { once: true });
  });
}

/** What `work` resolves to; undefined as soon as `signal` is aborted. Nothing stays on the signal afterwards. */
export function unlessAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T | undefined> {
  return new Promise((resolve, reject) => {
    if (signal.aborted) {
      resolve(undefined);
      return;
    }
    const stop = (): void => resolve(undefined);
    signal.addEventListener('abort', stop, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener('abort', stop));
  });
}

/** Resolves after `milliseconds`, or when `signal` is aborted. */
export function pause(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) {
      resolve();
      return;
    }
    const done = (): void => {
      clearTimeout(timer);
      signal.removeEventListener('abort', done);
      resolve();
    };
    const timer = setTimeout(done, milliseconds);
    signal.addEventListener('abort', done, { once: true });
  });
}

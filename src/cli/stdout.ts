import { isatty } from 'node:tty';

const DESCRIPTOR = 1;

/**
 * Standard output, written with the reader's pace. It is not touched before it is used: Node.js makes a pipe
 * non-blocking, for a program that shares it, too.
 */
export class Stdout {
  readonly #onClosed: () => void;
  #opened: NodeJS.WriteStream | undefined;
  #closed = false;
  readonly #waiting = new Set<() => void>();

  /** @param onClosed called when nobody reads any more. */
  constructor(onClosed: () => void) {
    this.#onClosed = onClosed;
  }

  get #stream(): NodeJS.WriteStream {
    this.#opened ??= process.stdout.on('error', () => {
      this.#closed = true;
      this.#onClosed();
    });
    return this.#opened;
  }

  readonly terminal = isatty(DESCRIPTOR);

  /** Characters in a line of the terminal; undefined when it is none. */
  get width(): number | undefined {
    return this.terminal ? this.#stream.columns || undefined : undefined;
  }

  /** Resolves when the reader has taken it. Nothing happens when nobody reads any more. */
  write(bytes: Uint8Array | string): Promise<void> {
    if (this.#closed) return Promise.resolve();
    return new Promise((resolve) => {
      this.#waiting.add(resolve);
      this.#stream.write(bytes, () => {
        this.#waiting.delete(resolve);
        resolve();
      });
    });
  }

  /** A reader that does not read is not waited for any more. */
  giveUp(): void {
    this.#closed = true;
    for (const resolve of this.#waiting) resolve();
  }
}

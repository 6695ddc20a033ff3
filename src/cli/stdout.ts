/** Standard output, written with the reader's pace. */
export class Stdout {
  readonly #stream: NodeJS.WriteStream;
  #closed = false;

  /** @param onClosed called when nobody reads any more. */
  constructor(stream: NodeJS.WriteStream, onClosed: () => void) {
    this.#stream = stream;
    stream.on('error', () => {
      this.#closed = true;
      onClosed();
    });
  }

  get terminal(): boolean {
    return this.#stream.isTTY === true;
  }

  /** Characters in a line of the terminal; undefined when it is none. */
  get width(): number | undefined {
    return this.terminal ? this.#stream.columns : undefined;
  }

  /** Resolves when the reader has taken it. Nothing happens when nobody reads any more. */
  write(bytes: Uint8Array | string): Promise<void> {
    if (this.#closed) return Promise.resolve();
    return new Promise((resolve) => {
      this.#stream.write(bytes, () => resolve());
    });
  }
}

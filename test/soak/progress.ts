const EVERY = 25;

/** Says on stderr how far a soak has come: on a terminal in one line, otherwise now and then. */
export class Progress {
  readonly #rounds: number;
  readonly #terminal = process.stderr.isTTY === true;

  constructor(rounds: number) {
    this.#rounds = rounds;
  }

  show(done: number, failed: number, last: string): void {
    const text = `${done} of ${this.#rounds} rounds, ${failed} with something wrong`;
    if (this.#terminal) process.stderr.write(`\r\x1b[K${text}  ${last}`.slice(0, process.stderr.columns + 4));
    else if (done % EVERY === 0) process.stderr.write(`${text}\n`);
  }

  clear(): void {
    if (this.#terminal) process.stderr.write('\r\x1b[K');
  }
}

/** Registers of the 16550, as offsets from its first port. */
const DATA = 0;
const INTERRUPT_ID = 2;
const LINE_STATUS = 5;
const MODEM_STATUS = 6;
const SCRATCH = 7;

const TRANSMITTER_EMPTY = 0x60;
const DATA_READY = 1;
const NO_INTERRUPT = 1;
const CARRIER = 0xb0;
/** Characters of output that are kept for {@link SerialPort.text}, at least. */
const HISTORY = 64 * 1024;
/** Bytes of input that wait for the guest at most; more are dropped. */
const INPUT_LIMIT = 4096;

/** A serial port without interrupts: what the guest writes comes out at once. */
export class SerialPort {
  readonly #registers = new Uint8Array(8);
  readonly #input: number[] = [];
  readonly #listeners = new Set<(text: string) => void>();
  #text = '';
  #pending = '';
  #flushing = false;

  /** The last 64 Ki characters that the guest wrote, or a few more. */
  get text(): string {
    return this.#text;
  }

  /** Calls `listener` with what the guest writes, soon after it does. Returns how to stop that. */
  onOutput(listener: (text: string) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Lines of output from now on, without their ends; runs until the consumer stops. */
  async *lines(): AsyncGenerator<string, void, void> {
    const lines: string[] = [];
    let rest = '';
    let wake = () => {};
    const stop = this.onOutput((text) => {
      const parts = (rest + text).split('\n');
      rest = parts.pop()!;
      lines.push(...parts);
      wake();
    });
    try {
      for (;;) {
        const line = lines.shift();
        if (line !== undefined) yield line;
        else {
          await new Promise<void>((resolve) => {
            wake = resolve;
          });
        }
      }
    } finally {
      stop();
    }
  }

  /** Gives the guest something to read. */
  write(text: string): void {
    for (const byte of Buffer.from(text)) if (this.#input.length < INPUT_LIMIT) this.#input.push(byte);
  }

  read(register: number): number {
    switch (register) {
      case DATA:
        return this.#input.shift() ?? 0;
      case INTERRUPT_ID:
        return NO_INTERRUPT;
      case LINE_STATUS:
        return TRANSMITTER_EMPTY | (this.#input.length > 0 ? DATA_READY : 0);
      case MODEM_STATUS:
        return CARRIER;
      default:
        return this.#registers[register]!;
    }
  }

  store(register: number, value: number): void {
    const divisorLatch = (this.#registers[3]! & 0x80) !== 0;
    if (register === DATA && !divisorLatch) this.#put(value);
    else if (register <= SCRATCH) this.#registers[register] = value;
  }

  reset(): void {
    this.#registers.fill(0);
    this.#input.length = 0;
  }

  #put(byte: number): void {
    const character = String.fromCharCode(byte);
    this.#text += character;
    if (this.#text.length > 2 * HISTORY) this.#text = this.#text.slice(-HISTORY);
    if (this.#listeners.size === 0) return;
    this.#pending += character;
    if (this.#flushing) return;
    this.#flushing = true;
    queueMicrotask(() => {
      const text = this.#pending;
      this.#pending = '';
      this.#flushing = false;
      for (const listener of this.#listeners) listener(text);
    });
  }
}

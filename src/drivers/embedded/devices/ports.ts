import type { SerialPort } from './serial.ts';

const SERIAL = 0x3f8;
/** A byte written here ends the machine, with that byte as its exit code. */
const EXIT_PORT = 0xf4;

/** The I/O ports of a machine. Ports without a device read as all ones. */
export class Ports {
  readonly #serial: SerialPort;
  readonly #exit: (code: number) => void;

  constructor(serial: SerialPort, exit: (code: number) => void) {
    this.#serial = serial;
    this.#exit = exit;
  }

  read(port: number, size: number): number {
    let value = 0;
    for (let i = size - 1; i >= 0; i--) value = value * 256 + this.#readByte((port + i) & 0xffff);
    return value | 0;
  }

  write(port: number, size: number, value: number): void {
    for (let i = 0; i < size; i++) this.#writeByte((port + i) & 0xffff, (value >>> (8 * i)) & 0xff);
  }

  #readByte(port: number): number {
    return port >= SERIAL && port < SERIAL + 8 ? this.#serial.read(port - SERIAL) : 0xff;
  }

  #writeByte(port: number, value: number): void {
    if (port >= SERIAL && port < SERIAL + 8) this.#serial.store(port - SERIAL, value);
    else if (port === EXIT_PORT) this.#exit(value);
  }
}

import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import type { LinuxGuest } from '../test/kit/linux-guest.ts';

/** The least that a client of QEMU's gdbstub can be: one packet, one answer. */
class RawClient {
  readonly #socket: Socket;
  #buffer = '';
  #waiters: ((payload: string) => void)[] = [];

  constructor(path: string) {
    this.#socket = connect(path);
    this.#socket.setEncoding('latin1');
    this.#socket.on('data', (text) => this.#receive(String(text)));
  }

  #receive(text: string): void {
    this.#buffer += text;
    for (;;) {
      const start = this.#buffer.indexOf('$');
      const end = this.#buffer.indexOf('#', start);
      if (start < 0 || end < 0 || this.#buffer.length < end + 3) return;
      const payload = this.#buffer.slice(start + 1, end);
      this.#buffer = this.#buffer.slice(end + 3);
      this.#socket.write('+');
      this.#waiters.shift()?.(payload);
    }
  }

  ask(command: string): Promise<string> {
    return new Promise((resolve) => {
      this.#waiters.push(resolve);
      let sum = 0;
      for (const character of command) sum += character.charCodeAt(0);
      this.#socket.write(`$${command}#${(sum & 255).toString(16).padStart(2, '0')}`, 'latin1');
    });
  }

  interrupt(): void {
    this.#socket.write('\x03', 'latin1');
  }

  close(): void {
    this.#socket.destroy();
  }
}

const STEP_OVER = 5;
const RIP_REGISTER = 0x10;

function littleEndian(value: bigint): string {
  return Buffer.from(BigUint64Array.of(value).buffer).toString('hex');
}

/**
 * What a breakpoint costs when nothing but the stub is in the way: stop, read the registers, move rip on over
 * the five-byte no-op that the function starts with, continue.
 *
 * @returns milliseconds a hit, the load itself included, and the hits.
 */
export async function rawBreakpointCost(
  vm: LinuxGuest,
  gva: bigint,
  load: () => Promise<unknown>,
): Promise<{ cost: number; hits: number }> {
  const path = join(vm.directory, 'raw-gdb');
  await vm.monitor.hmp(`gdbserver unix:${path},server=on,wait=off`);
  const client = new RawClient(path);
  await client.ask('qSupported:multiprocess+');
  await client.ask('?');
  await client.ask('qXfer:features:read:target.xml:0,ffb');
  await client.ask(`Z1,${gva.toString(16)},1`);
  let hits = 0;
  let running = true;
  const start = performance.now();
  const finished = load().then(() => {
    running = false;
    client.interrupt();
  });
  let stopped = client.ask('c');
  for (;;) {
    await stopped;
    if (!running) break;
    hits++;
    await client.ask('g');
    await client.ask(`P${RIP_REGISTER.toString(16)}=${littleEndian(gva + BigInt(STEP_OVER))}`);
    stopped = client.ask('c');
  }
  const elapsed = performance.now() - start;
  await finished;
  await client.ask(`z1,${gva.toString(16)},1`);
  await client.ask('D;1');
  client.close();
  await vm.monitor.hmp('gdbserver none');
  return { cost: elapsed / Math.max(1, hits), hits };
}

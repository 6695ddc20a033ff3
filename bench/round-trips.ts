import { mkdtempSync, rmSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Guest, listen } from '../src/tool/index.ts';
import { startChild } from './child.ts';
import { type Measurement, median, ratePerSecondAsync } from './measurement.ts';

const PIPELINE = 64;
const ROUNDS = 5;
/** VM_READ_PHYSICAL in bytes: header and body; header, error code and data. */
const READ_REQUEST = 24;
const readReply = (size: number): number => 16 + size;

/** One request, one answer, on a plain socket. */
class EchoClient {
  readonly #socket: Socket;
  readonly #request: Uint8Array;
  readonly #replySize: number;
  #received = 0;
  #done: (() => void) | undefined;

  constructor(socket: Socket, requestSize: number, replySize: number) {
    this.#socket = socket;
    this.#request = new Uint8Array(requestSize);
    this.#replySize = replySize;
    socket.on('data', (bytes) => {
      this.#received += bytes.length;
      if (this.#received >= this.#replySize) {
        this.#received = 0;
        this.#done?.();
      }
    });
  }

  ask(): Promise<void> {
    return new Promise((resolve) => {
      this.#done = resolve;
      this.#socket.write(this.#request);
    });
  }
}

async function echoRate(path: string, requestSize: number, replySize: number): Promise<number> {
  const child = await startChild('bench/echo-process.js', [path, `${requestSize}`, `${replySize}`], 'ready');
  const socket = connect(path);
  const client = new EchoClient(socket, requestSize, replySize);
  const rate = await ratePerSecondAsync(async (count) => {
    for (let i = 0; i < count; i++) await client.ask();
  });
  socket.destroy();
  child.kill();
  return rate;
}

async function oneAtATime(guest: Guest, into: Uint8Array): Promise<number> {
  return ratePerSecondAsync(async (count) => {
    for (let i = 0; i < count; i++) await guest.memory.read(0x1000, into);
  });
}

async function pipelined(guest: Guest, size: number): Promise<number> {
  const buffers = Array.from({ length: PIPELINE }, () => new Uint8Array(size));
  return ratePerSecondAsync(async (count) => {
    for (let done = 0; done < count; done += PIPELINE) {
      await Promise.all(buffers.map((into) => guest.memory.read(0x1000, into)));
    }
  });
}

/**
 * VM_READ_PHYSICAL over a Unix socket, the host side in a process of its own, against a bare server that sends
 * as many bytes back.
 *
 * @param startHost starts a host side that hooks its machine to the tool at a Unix socket.
 */
export async function roundTrips(
  what: string,
  startHost: (socket: string) => Promise<{ kill(): void }>,
): Promise<Measurement[]> {
  const directory = mkdtempSync(join(tmpdir(), 'kvmi-bench-'));
  const path = join(directory, 'tool.sock');
  const server = await listen(`unix:${path}`);
  const guests = server[Symbol.asyncIterator]();
  const host = await startHost(path);
  const guest = (await guests.next()).value as Guest;
  try {
    return [
      ...(await compare(guest, what, 8, join(directory, 'echo8'))),
      ...(await compare(guest, what, 4096, join(directory, 'echo4096'))),
    ];
  } finally {
    await guest.detach();
    host.kill();
    await server.close();
    rmSync(directory, { recursive: true, force: true });
  }
}

async function compare(guest: Guest, what: string, size: number, echo: string): Promise<Measurement[]> {
  const single: number[] = [];
  const bare: number[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    bare.push(await echoRate(`${echo}-${round}`, READ_REQUEST, readReply(size)));
    single.push(await oneAtATime(guest, new Uint8Array(size)));
  }
  const batch = await pipelined(guest, size);
  const name = `${what}: read ${size} bytes`;
  return [
    {
      name: `${name}, one at a time`,
      value: median(single),
      unit: '/s',
      against: { what: 'a bare echo', ratio: median(single) / median(bare), budget: '>= 0.6' },
    },
    {
      name: `${name}, ${PIPELINE} in flight`,
      value: batch,
      unit: '/s',
      against: { what: 'one at a time', ratio: batch / median(single), budget: '>= 4' },
    },
  ];
}

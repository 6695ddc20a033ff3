import assert from 'node:assert/strict';
import type { Socket } from 'node:net';
import { patiently } from './peer.ts';

/*
 * A client that behaves on the wire as libkvmi does. It builds and reads bytes on its own, so that a mistake in wire/
 * is not made on both ends.
 */

/** Command ids of dialect v7, by libkvmi's names. */
export const COMMAND = {
  GET_VERSION: 2,
  GET_GUEST_INFO: 5,
  PAUSE_VCPU: 7,
  CONTROL_EVENTS: 9,
  CONTROL_CR: 10,
  CONTROL_MSR: 11,
  GET_REGISTERS: 13,
  SET_REGISTERS: 14,
  READ_PHYSICAL: 17,
  WRITE_PHYSICAL: 18,
  SET_PAGE_ACCESS: 21,
  CONTROL_CMD_RESPONSE: 27,
  GET_MAX_GFN: 29,
  CONTROL_SINGLESTEP: 63,
} as const;

/** Event ids of dialect v7. */
export const EVENT = {
  CR: 1,
  MSR: 2,
  BREAKPOINT: 4,
  HYPERCALL: 5,
  PF: 6,
  DESCRIPTOR: 8,
  PAUSE_VCPU: 10,
  SINGLESTEP: 11,
} as const;

export const CONTINUE = 0;
export const RETRY = 1;

const EVENT_MESSAGE = 1;
const EVENT_REPLY_MESSAGE = 0;
const COMMON_SIZE = 544;
const GENERAL_REGISTERS = { offset: 16, size: 144 };
const CR3_OFFSET = 400;

export interface LibkvmiEvent {
  readonly seq: number;
  readonly id: number;
  readonly vcpu: number;
  readonly cr3: bigint;
  /** kvm_regs, 144 bytes. */
  readonly regs: Buffer;
  /** What belongs to this kind of event. */
  readonly data: Buffer;
}

/** Little-endian fields, one after another: [bytes, value]. */
export function fields(
  ...parts: readonly (readonly [size: 1 | 2 | 4 | 8, value: number | bigint])[]
): Buffer {
  const buffers = parts.map(([size, value]) => {
    const bytes = Buffer.alloc(8);
    bytes.writeBigUInt64LE(BigInt(value));
    return bytes.subarray(0, size);
  });
  return Buffer.concat(buffers);
}

/** The header of vCPU commands. */
export function onVcpu(vcpu: number, body: Buffer = Buffer.alloc(0)): Buffer {
  return Buffer.concat([fields([2, vcpu], [2, 0], [4, 0]), body]);
}

export class LibkvmiClient {
  readonly #socket: Socket;
  #received = Buffer.alloc(0);
  #wanted: { size: number; resolve: (bytes: Buffer) => void } | undefined;
  #seq = 0;
  #outstanding: { id: number; seq: number; resolve: (payload: Buffer) => void } | undefined;
  readonly #events: LibkvmiEvent[] = [];
  #eventWaiter: ((event: LibkvmiEvent) => void) | undefined;
  #broken: ((error: unknown) => void) | undefined;
  /** Rejects when the host side hangs up or sends something that libkvmi does not take. */
  readonly failed: Promise<never>;
  #closing = false;

  constructor(socket: Socket) {
    this.#socket = socket;
    this.failed = new Promise((_, reject) => {
      this.#broken = reject;
    });
    this.failed.catch(() => {});
    socket.on('error', () => {});
    socket.on('close', () => {
      if (!this.#closing) this.#broken?.(new Error('the host side hung up'));
    });
    socket.on('data', (chunk: Buffer) => {
      this.#received = Buffer.concat([this.#received, chunk]);
      this.#serve();
    });
  }

  #serve(): void {
    while (this.#wanted && this.#received.length >= this.#wanted.size) {
      const { size, resolve } = this.#wanted;
      this.#wanted = undefined;
      const bytes = this.#received.subarray(0, size);
      this.#received = this.#received.subarray(size);
      resolve(bytes);
    }
  }

  /** Exactly `size` bytes. */
  #read(size: number): Promise<Buffer> {
    return new Promise((resolve) => {
      this.#wanted = { size, resolve };
      this.#serve();
    });
  }

  /** What libkvmi does on accept, up to GET_VERSION. Returns the UUID and the features. */
  async accept(): Promise<{ uuid: Buffer; features: Buffer }> {
    const size = (await patiently(this.#read(4), 'the size of the handshake')).readUInt32LE();
    assert.ok(size >= 32 && size <= 65536, `the handshake announces ${size} bytes`);
    const hello = await patiently(this.#read(Math.min(size, 96) - 4), 'the handshake');
    if (size > 96) await patiently(this.#read(size - 96), 'the rest of the handshake');
    this.#socket.write(Buffer.concat([fields([4, 24]), Buffer.alloc(20)]));
    void this.#receive().catch((error: unknown) => this.#broken?.(error));
    const version = await this.request(COMMAND.GET_VERSION);
    assert.ok(version.readUInt32LE() >= 1, 'the version is 1 or later');
    return { uuid: hello.subarray(0, 16), features: version.subarray(8, 12) };
  }

  async #receive(): Promise<void> {
    for (;;) {
      const header = await this.#read(8);
      const [id, size, seq] = [header.readUInt16LE(), header.readUInt16LE(2), header.readUInt32LE(4)];
      const payload = size === 0 ? Buffer.alloc(0) : await this.#read(size);
      if (id === EVENT_MESSAGE) this.#takeEvent(seq, payload);
      else this.#takeReply(id, seq, payload);
    }
  }

  #takeReply(id: number, seq: number, payload: Buffer): void {
    const outstanding = this.#outstanding;
    assert.ok(outstanding, `a reply ${id} that nobody waits for`);
    assert.deepEqual([id, seq], [outstanding.id, outstanding.seq], 'id and seq of the reply');
    this.#outstanding = undefined;
    outstanding.resolve(payload);
  }

  #takeEvent(seq: number, payload: Buffer): void {
    const size = payload.readUInt16LE();
    assert.equal(size, COMMON_SIZE, 'size of the common part of an event');
    assert.ok(size <= payload.length, `an event of ${payload.length} bytes is shorter than it says`);
    const event: LibkvmiEvent = {
      seq,
      vcpu: payload.readUInt16LE(2),
      id: payload.readUInt8(4),
      cr3: payload.readBigUInt64LE(CR3_OFFSET),
      regs: payload.subarray(GENERAL_REGISTERS.offset, GENERAL_REGISTERS.offset + GENERAL_REGISTERS.size),
      data: payload.subarray(size),
    };
    const waiter = this.#eventWaiter;
    this.#eventWaiter = undefined;
    if (waiter) waiter(event);
    else this.#events.push(event);
  }

  #message(id: number, payload: Buffer, seq = ++this.#seq): Buffer {
    return Buffer.concat([fields([2, id], [2, payload.length], [4, seq]), payload]);
  }

  #reply(id: number, seq: number): Promise<Buffer> {
    assert.equal(this.#outstanding, undefined, 'one request at a time');
    const arrived = new Promise<Buffer>((resolve) => {
      this.#outstanding = { id, seq, resolve };
    });
    return patiently(Promise.race([arrived, this.failed]), `the reply to ${id}`);
  }

  /** Sends a request that must succeed; returns the data of its reply. */
  async request(id: number, payload: Buffer = Buffer.alloc(0)): Promise<Buffer> {
    this.#socket.write(this.#message(id, payload));
    return succeeded(id, await this.#reply(id, this.#seq));
  }

  /** Messages in one write, between CONTROL_CMD_RESPONSE off and on; waits for the reply of the last. */
  async batch(messages: readonly (readonly [id: number, payload: Buffer])[]): Promise<void> {
    const off = this.#message(COMMAND.CONTROL_CMD_RESPONSE, fields([1, 0], [1, 1], [2, 0], [4, 0]));
    const inner = messages.map(([id, payload]) => this.#message(id, payload));
    const on = this.#message(COMMAND.CONTROL_CMD_RESPONSE, fields([1, 1], [1, 1], [2, 0], [4, 0]));
    this.#socket.write(Buffer.concat([off, ...inner, on]));
    succeeded(COMMAND.CONTROL_CMD_RESPONSE, await this.#reply(COMMAND.CONTROL_CMD_RESPONSE, this.#seq));
  }

  /** The next event; undefined when none comes before `until`. */
  async nextEvent(until?: Promise<unknown>): Promise<LibkvmiEvent | undefined> {
    const queued = this.#events.shift();
    if (queued) return queued;
    const arrived = new Promise<LibkvmiEvent>((resolve) => {
      this.#eventWaiter = resolve;
    });
    const none = until?.then(() => undefined);
    const event = await patiently(Promise.race([arrived, this.failed, ...(none ? [none] : [])]), 'an event');
    if (!event) this.#eventWaiter = undefined;
    return event;
  }

  /** Answers an event: 16 bytes, and what this kind of event has. */
  answer(event: LibkvmiEvent, action: number, data: Buffer = Buffer.alloc(0)): void {
    const head = fields([1, action], [1, event.id], [2, 0], [4, 0]);
    const payload = onVcpu(event.vcpu, Buffer.concat([head, data]));
    this.#socket.write(this.#message(EVENT_REPLY_MESSAGE, payload, event.seq));
  }

  close(): void {
    this.#closing = true;
    this.#socket.destroy();
  }
}

function succeeded(id: number, payload: Buffer): Buffer {
  const error = payload.readInt32LE();
  assert.equal(error, 0, `request ${id} fails with ${error}`);
  return payload.subarray(8);
}

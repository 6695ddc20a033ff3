import assert from 'node:assert/strict';
import { getS32 } from '../../src/abi/bytes.ts';
import { deferred } from '../../src/awaitable.ts';
import type { Channel } from '../../src/transport/index.ts';
import {
  type Action,
  type CommandName,
  type Dialect,
  decodeEvent,
  decodeReply,
  ERROR_SIZE,
  type EventName,
  type EventReplyData,
  encodeCommand,
  encodeEventReply,
  FrameDecoder,
  HEADER_SIZE,
  isEvent,
  putHeader,
  type ReceivedEvent,
  type Replies,
  type Requests,
} from '../../src/wire/index.ts';

/** How a command was answered. */
export interface Answered<N extends CommandName = CommandName> {
  /** 0 or a negative error number. */
  readonly err: number;
  readonly data: Replies[N];
  /** Payload bytes of the reply. */
  readonly size: number;
}

/** A message that arrived, with a payload of its own. */
export interface Message {
  readonly id: number;
  readonly seq: number;
  readonly payload: Uint8Array;
}

const PATIENCE = 10_000;

/**
 * A tool that sends and receives bare messages: what the SDK would hide – wrong sizes, padding, sequence
 * numbers – can be said with it.
 */
export class Peer {
  readonly dialect: Dialect;
  readonly channel: Channel;
  readonly closed: Promise<void>;
  /** Told about each command that succeeded and each event that arrived. */
  onSeen: (name: CommandName | EventName) => void = () => {};
  readonly #events: (ReceivedEvent & { size: number })[] = [];
  readonly #eventWaiters: ((event: ReceivedEvent & { size: number }) => void)[] = [];
  readonly #replies = new Map<number, (message: Message) => void>();
  #seq = 100;
  #isClosed = false;

  constructor(channel: Channel, dialect: Dialect) {
    this.channel = channel;
    this.dialect = dialect;
    const closed = deferred<void>();
    this.closed = closed.promise;
    const decoder = new FrameDecoder((id, seq, payload) => this.#take({ id, seq, payload: payload.slice() }));
    channel.open({
      data: (bytes) => void decoder.push(bytes),
      close: () => {
        this.#isClosed = true;
        closed.resolve();
      },
    });
  }

  get isClosed(): boolean {
    return this.#isClosed;
  }

  #take(message: Message): true {
    const { id, seq, payload } = message;
    if (isEvent(this.dialect, id, payload) && !this.#replies.has(seq)) {
      const decoded = decodeEvent(this.dialect, id, seq, payload);
      this.onSeen(decoded.name);
      const event = { ...decoded, size: payload.length };
      const waiter = this.#eventWaiters.shift();
      if (waiter) waiter(event);
      else this.#events.push(event);
      return true;
    }
    const waiter = this.#replies.get(seq);
    assert.ok(waiter, `message ${id} with seq ${seq} answers nothing`);
    this.#replies.delete(seq);
    waiter(message);
    return true;
  }

  /** Sends bytes as they are. */
  send(bytes: Uint8Array): void {
    this.channel.write(bytes);
  }

  /** Sends a message of any id and payload; resolves with whatever has its sequence number. */
  raw(id: number, payload: Uint8Array, seq = this.#seq++): Promise<Message> {
    const { promise, resolve } = deferred<Message>();
    this.#replies.set(seq, resolve);
    const message = new Uint8Array(HEADER_SIZE + payload.length);
    putHeader(message, 0, id, payload.length, seq);
    message.set(payload, HEADER_SIZE);
    this.send(message);
    return patiently(promise, `a reply to message ${id}`);
  }

  /** Sends a command and checks the form of its reply: id, seq, and 8 bytes exactly on an error. */
  async command<N extends CommandName>(name: N, body: Requests[N], vcpu = 0): Promise<Answered<N>> {
    return this.commandBytes(name, (bytes) => bytes, body, vcpu);
  }

  /** As `command`, with the payload changed on the way: cut, lengthened, or with padding set. */
  async commandBytes<N extends CommandName>(
    name: N,
    change: (payload: Uint8Array) => Uint8Array,
    body: Requests[N],
    vcpu = 0,
  ): Promise<Answered<N>> {
    const message = encodeCommand(this.dialect, name, 0, body, vcpu);
    const definition = this.dialect.command(name)!;
    const { id, payload } = await this.raw(definition.id, change(message.slice(HEADER_SIZE)));
    assert.equal(id, definition.id, `the reply to ${name} has its id`);
    assert.ok(payload.length >= ERROR_SIZE, `the reply to ${name} has an error code`);
    const err = getS32(payload, 0);
    if (err !== 0) {
      assert.equal(payload.length, ERROR_SIZE, `an error reply to ${name} has exactly 8 bytes`);
      return { err, data: {} as Replies[N], size: payload.length };
    }
    this.onSeen(name);
    return { err, data: decodeReply(definition, payload), size: payload.length };
  }

  /** The next event, which must be `name`. */
  async event<N extends EventName>(name: N): Promise<ReceivedEvent<N> & { size: number }> {
    const queued = this.#events.shift();
    const { promise, resolve } = deferred<ReceivedEvent & { size: number }>();
    if (queued) resolve(queued);
    else this.#eventWaiters.push(resolve);
    const event = await patiently(promise, `event ${name}`);
    assert.equal(event.name, name);
    return event as unknown as ReceivedEvent<N> & { size: number };
  }

  /** Events that arrived and were not asked for yet. */
  get pendingEvents(): readonly EventName[] {
    return this.#events.map((event) => event.name);
  }

  reply(event: ReceivedEvent, action: Action, data?: EventReplyData): void {
    this.send(encodeEventReply(this.dialect, event, action, data));
  }
}

/** Fails instead of hanging: when `promise` is not settled within `patience` ms. */
export async function patiently<T>(promise: Promise<T>, what: string, patience = PATIENCE): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const timeout = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`waited ${patience} ms for ${what}`)), patience);
  });
  return Promise.race([promise, timeout]).finally(() => clearTimeout(timer));
}

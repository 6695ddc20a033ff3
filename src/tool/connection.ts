import { getS32, getU16 } from '../abi/bytes.ts';
import { empty } from '../abi/struct.ts';
import { type Deferred, deferred } from '../awaitable.ts';
import { KvmiError } from '../error.ts';
import type { Channel, ChannelHandler } from '../transport/index.ts';
import {
  COMMON_SIZE,
  type Dialect,
  decodeEvent,
  ERROR_SIZE,
  type EventDefinition,
  encodeEventReply,
  FrameDecoder,
  isEvent,
  ProtocolError,
  type ReceivedEvent,
} from '../wire/index.ts';
import { Requests } from './requests.ts';

/** KVMI over a channel: cuts the stream, tells events from replies, and ends once. */
export class Connection implements ChannelHandler {
  readonly channel: Channel;
  readonly dialect: Dialect;
  readonly requests: Requests;
  readonly timeout: number;
  readonly #report: (error: Error) => void;
  /** Takes each event. Set before the channel is opened. */
  onEvent: (event: ReceivedEvent) => void = () => {};
  readonly #decoder = new FrameDecoder((id, seq, payload) => this.#take(id, seq, payload));
  readonly #closed: Deferred<Error | undefined> = deferred();
  readonly #atEnd = new Set<() => void>();
  #ended = false;
  #failure: Error | undefined;

  constructor(channel: Channel, dialect: Dialect, timeout: number, report: (error: Error) => void) {
    this.channel = channel;
    this.dialect = dialect;
    this.timeout = timeout;
    this.#report = report;
    this.requests = new Requests(dialect, {
      write: (message) => channel.write(message),
      report: (error) => this.report(error),
      timeout,
    });
  }

  /** Resolves when the connection is over: with the error that ended it, if it was one. */
  get closed(): Promise<Error | undefined> {
    return this.#closed.promise;
  }

  get ended(): boolean {
    return this.#ended;
  }

  /** Tells the user about something that has no other way to surface; but not that something failed because of the end. */
  report(error: Error): void {
    if (!(this.#ended && isClosed(error))) this.#report(error);
  }

  /** Calls `run` when the connection is over. The result takes that back, for those who do not wait any more. */
  onEnd(run: () => void): () => void {
    this.#atEnd.add(run);
    return () => this.#atEnd.delete(run);
  }

  write(message: Uint8Array): void {
    this.channel.write(message);
  }

  data(bytes: Uint8Array): void {
    if (this.#ended) return;
    try {
      this.#decoder.push(bytes);
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      this.#failure = error;
      this.shutdown();
    }
  }

  close(error?: Error): void {
    this.#end(error ?? this.#failure);
    this.#closed.resolve(error ?? this.#failure);
  }

  /** Hangs up, after what was written. */
  shutdown(): void {
    this.#end(this.#failure);
    this.channel.shutdown();
  }

  #end(error: Error | undefined): void {
    if (this.#ended) return;
    this.#ended = true;
    this.requests.close(
      new KvmiError('E_CLOSED', `the connection to ${this.channel.peer} is closed${because(error)}`, {
        ...(error && { cause: error }),
      }),
    );
    for (const run of this.#atEnd) run();
  }

  #take(id: number, seq: number, payload: Uint8Array): boolean {
    const { event, vmEvent } = this.dialect.messages;
    if (id !== event && id !== vmEvent) this.requests.reply(id, seq, payload);
    else if (isEvent(this.dialect, id, payload)) this.#event(id, seq, payload);
    else this.#notAnEvent(id, seq, payload);
    return !this.#ended;
  }

  #event(id: number, seq: number, payload: Uint8Array): void {
    const eventId = this.dialect.eventHeaderSize > 0 ? getU16(payload, 0) : payload[4]!;
    if (this.dialect.eventById(eventId)) this.onEvent(decodeEvent(this.dialect, id, seq, payload));
    else this.#unknownEvent(id, eventId, seq, payload);
  }

  /** A vCPU waits for an answer to an event that this dialect does not know: it is let go on. */
  #unknownEvent(id: number, eventId: number, seq: number, payload: Uint8Array): void {
    const { dialect } = this;
    this.report(new ProtocolError(`event ${eventId} is not known in ${dialect.name}`, { event: eventId }));
    const common = dialect.eventHeaderSize;
    if (id !== dialect.messages.event || payload.length < common + COMMON_SIZE) return;
    const definition = { ...UNKNOWN_EVENT, id: eventId };
    const vcpu = getU16(payload, common + 2);
    this.write(encodeEventReply(dialect, { definition, seq, vcpu }, 'continue'));
  }

  /** An error block with the id of an event says that the answer to that event was refused. */
  #notAnEvent(id: number, seq: number, payload: Uint8Array): void {
    if (payload.length !== ERROR_SIZE) {
      throw new ProtocolError(`event message ${id} has only ${payload.length} bytes`, { id, seq });
    }
    const errno = -getS32(payload, 0);
    this.report(
      new ProtocolError(`the answer to the event with seq ${seq} was refused: error ${errno}`, {
        seq,
        errno,
      }),
    );
  }
}

const UNKNOWN_EVENT: EventDefinition = {
  name: 'PAUSE',
  id: 0,
  controlledBy: 'vcpu',
  data: empty,
  reply: empty,
  actions: ['continue'],
};

function isClosed(error: unknown): boolean {
  return error instanceof KvmiError && (error.code === 'E_CLOSED' || isClosed(error.cause));
}

function because(error: Error | undefined): string {
  return error ? `: ${error.message}` : '';
}

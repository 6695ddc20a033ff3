import type { Awaitable } from '../awaitable.ts';
import { KvmiError } from '../error.ts';
import {
  type CommandDefinition,
  type CommandName,
  type Dialect,
  decodeReply,
  encodeCommand,
  ProtocolError,
  type Replies,
  type Requests as RequestBodies,
} from '../wire/index.ts';

/** Decodes the payload of a reply, error code included. */
export type ReadReply<T> = (payload: Uint8Array, definition: CommandDefinition) => T;

const SEQ_MODULUS = 2 ** 32;
/** Replies that come after their time-out are expected for this many requests. */
const MAX_OVERDUE = 1024;

/** A command that waits for its reply. A promise is only made if the reply is not there at once. */
class Request {
  readonly definition: CommandDefinition;
  readonly vcpu: number;
  readonly deadline: number;
  readonly #read: ReadReply<unknown>;
  #state: 'waiting' | 'done' | 'failed' = 'waiting';
  #result: unknown;
  #resolve: ((value: unknown) => void) | undefined;
  #reject: ((error: unknown) => void) | undefined;

  constructor(definition: CommandDefinition, vcpu: number, deadline: number, read: ReadReply<unknown>) {
    this.definition = definition;
    this.vcpu = vcpu;
    this.deadline = deadline;
    this.#read = read;
  }

  /** The reply: at once if it is there (an in-process peer), else a promise. */
  outcome(): Awaitable<unknown> {
    if (this.#state === 'done') return this.#result;
    if (this.#state === 'failed') throw this.#result;
    return new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
  }

  /** For those who only want to know when it fails. */
  onFailure(failed: (error: unknown) => void): void {
    if (this.#state === 'failed') failed(this.#result);
    else this.#reject = failed;
  }

  reply(payload: Uint8Array): void {
    try {
      this.#result = this.#read(payload, this.definition);
    } catch (error) {
      this.fail(error);
      return;
    }
    this.#state = 'done';
    this.#resolve?.(this.#result);
  }

  fail(error: unknown): void {
    this.#state = 'failed';
    this.#result = error;
    this.#reject?.(error);
  }

  /** `VCPU_GET_INFO for vCPU 1`: for error messages. */
  get title(): string {
    const { name, vcpuIn } = this.definition;
    return vcpuIn === 'nowhere' ? name : `${name} for vCPU ${this.vcpu}`;
  }
}

/**
 * Commands and their replies: any number may be outstanding, each is matched by its sequence number and id
 * and has its own time-out.
 */
export class Requests {
  readonly #dialect: Dialect;
  readonly #write: (message: Uint8Array) => void;
  readonly #report: (error: Error) => void;
  readonly #timeout: number;
  /** In the order in which they were sent, which is the order of their deadlines. */
  readonly #waiting = new Map<number, Request>();
  /** Sequence numbers of requests that timed out. */
  readonly #overdue = new Set<number>();
  #seq = 0;
  #timer: NodeJS.Timeout | undefined;
  #closed: KvmiError | undefined;

  constructor(
    dialect: Dialect,
    options: {
      readonly write: (message: Uint8Array) => void;
      readonly report: (error: Error) => void;
      readonly timeout: number;
    },
  ) {
    this.#dialect = dialect;
    this.#write = options.write;
    this.#report = options.report;
    this.#timeout = options.timeout;
  }

  /**
   * Sends a command. With `read` the reply's payload is handed to it instead of being decoded.
   *
   * @throws (or rejects with) NotInDialectError, ReplyError, and KvmiError with code E_TIMEOUT or E_CLOSED.
   */
  send<N extends CommandName>(name: N, body: RequestBodies[N], vcpu?: number): Awaitable<Replies[N]>;
  send<N extends CommandName, T>(
    name: N,
    body: RequestBodies[N],
    vcpu: number,
    read: ReadReply<T>,
  ): Awaitable<T>;
  send(
    name: CommandName,
    body: RequestBodies[CommandName],
    vcpu = 0,
    read: ReadReply<unknown> = decoded,
  ): Awaitable<unknown> {
    return this.#submit(name, body, vcpu, read).outcome();
  }

  /** Sends a command whose success is of no interest. */
  post<N extends CommandName>(
    name: N,
    body: RequestBodies[N],
    vcpu: number,
    failed: (error: unknown) => void,
  ): void {
    try {
      this.#submit(name, body, vcpu, decoded).onFailure(failed);
    } catch (error) {
      failed(error);
    }
  }

  #submit(
    name: CommandName,
    body: RequestBodies[CommandName],
    vcpu: number,
    read: ReadReply<unknown>,
  ): Request {
    if (this.#closed) throw this.#closed;
    const seq = this.#nextSeq();
    const message = encodeCommand(this.#dialect, name, seq, body, vcpu);
    const definition = this.#dialect.command(name)!;
    const request = new Request(definition, vcpu, performance.now() + this.#timeout, read);
    if (this.#waiting.size === 0) this.#startTimer();
    this.#waiting.set(seq, request);
    this.#write(message);
    return request;
  }

  #nextSeq(): number {
    do this.#seq = (this.#seq + 1) % SEQ_MODULUS;
    while (this.#waiting.has(this.#seq) || this.#overdue.has(this.#seq));
    return this.#seq;
  }

  /** Takes a message that is not an event. */
  reply(id: number, seq: number, payload: Uint8Array): void {
    const request = this.#waiting.get(seq);
    if (!request) {
      if (this.#overdue.delete(seq)) return;
      this.#report(new ProtocolError(`message ${id} with seq ${seq} answers nothing`, { id, seq }));
      return;
    }
    this.#forget(seq);
    if (request.definition.id === id) request.reply(payload);
    else request.fail(new ProtocolError(`${request.title} was answered with message ${id}`, { id, seq }));
  }

  /** Fails all that is outstanding, and all that comes. */
  close(why: KvmiError): void {
    this.#closed = why;
    clearTimeout(this.#timer);
    const requests = [...this.#waiting.values()];
    this.#waiting.clear();
    for (const request of requests) {
      request.fail(new KvmiError(why.code, `${request.title}: ${why.message}`, { cause: why }));
    }
  }

  #forget(seq: number): void {
    this.#waiting.delete(seq);
    if (this.#waiting.size === 0) this.#timer?.unref();
  }

  #startTimer(): void {
    if (this.#timer) this.#timer.ref().refresh();
    else this.#timer = setTimeout(() => this.#expire(), this.#timeout);
  }

  #expire(): void {
    const now = performance.now();
    for (const [seq, request] of this.#waiting) {
      if (request.deadline > now) {
        this.#timer = setTimeout(() => this.#expire(), request.deadline - now + 1);
        return;
      }
      this.#forget(seq);
      if (this.#overdue.size < MAX_OVERDUE) this.#overdue.add(seq);
      request.fail(
        new KvmiError('E_TIMEOUT', `${request.title}: no reply within ${this.#timeout} ms`, {
          hint: 'A vCPU answers only while the VM runs: resume the VM if it is stopped.',
          data: { command: request.definition.name, vcpu: request.vcpu },
        }),
      );
    }
    this.#timer = undefined;
  }
}

function decoded(payload: Uint8Array, definition: CommandDefinition): unknown {
  return decodeReply(definition, payload);
}

import { STATE_SIZE } from '../../src/abi/index.ts';
import { deferred } from '../../src/awaitable.ts';
import type { Channel } from '../../src/transport/index.ts';
import {
  ACTION,
  type Action,
  type CommandDefinition,
  type CommandName,
  DIALECTS,
  type Dialect,
  type DialectName,
  decodeCommand,
  decodeEventReply,
  decodeEventReplyData,
  type EventData,
  type EventName,
  type EventReplyData,
  encodeErrorReply,
  encodeEvent,
  encodeReply,
  FrameDecoder,
  MAX_EVENT_MESSAGE,
  type Replies,
  type Requests,
  stateOffset,
} from '../../src/wire/index.ts';

/** A command that the peer got. */
export interface HostCommand<N extends CommandName = CommandName> {
  readonly name: N;
  readonly id: number;
  readonly seq: number;
  readonly vcpu: number;
  readonly body: Requests[N];
}

/** Answers a command: reply data, a positive error number, or nothing to leave it unanswered. */
export type Script<N extends CommandName> = (
  command: HostCommand<N>,
) => Replies[N] | number | undefined | Promise<Replies[N] | number | undefined>;

export interface HostEventReply {
  readonly action: Action;
  readonly data: EventReplyData;
}

export interface HostOptions {
  readonly dialect?: DialectName;
  readonly vcpus?: number;
}

const actions = Object.entries(ACTION).map(([name]) => name as Action);

/**
 * The other end of a tool, the host side as far as a test scripts it: it answers GET_VERSION and VM_GET_INFO, acknowledges every
 * command without reply data, and leaves the rest to `on`.
 */
export class ScriptedHost {
  readonly dialect: Dialect;
  readonly channel: Channel;
  /** Everything that came, in order. */
  readonly received: HostCommand[] = [];
  /** Sequence numbers and vCPUs of event replies that nobody waited for. */
  readonly strayReplies: { seq: number; vcpu: number; action: number }[] = [];
  closed = false;
  /** Chunks that were delivered, for tests of batching. */
  chunks = 0;
  readonly #scripts = new Map<CommandName, Script<CommandName>>();
  readonly #waiting = new Map<number, { name: EventName; resolve: (reply: HostEventReply) => void }>();
  readonly #decoder = new FrameDecoder((id, seq, payload) => this.#take(id, seq, payload));
  #seq = 0;

  constructor(channel: Channel, options: HostOptions = {}) {
    this.channel = channel;
    this.dialect = DIALECTS[options.dialect ?? 'v12'];
    const max_msg_size = this.dialect.name === 'v12' ? 8184 : 0;
    this.on('GET_VERSION', () => ({
      version: 1,
      max_msg_size,
      singlestep: 1,
      spp: 0,
      vmfunc: 0,
      eptp: 0,
      ve: 0,
    }));
    this.on('VM_GET_INFO', () => ({ vcpu_count: options.vcpus ?? 1 }));
    this.on('VM_GET_MAX_GFN', () => ({ gfn: 0 }));
    this.on('VM_READ_PHYSICAL', () => 2);
  }

  /** Starts to serve. */
  open(): this {
    this.channel.open({
      data: (bytes) => {
        this.chunks++;
        this.#decoder.push(bytes);
      },
      close: () => {
        this.closed = true;
      },
    });
    return this;
  }

  /** Bytes that somebody else took from the channel. */
  feed(bytes: Uint8Array): void {
    this.#decoder.push(bytes);
  }

  on<N extends CommandName>(name: N, script: Script<N>): this {
    this.#scripts.set(name, script as unknown as Script<CommandName>);
    return this;
  }

  /** The commands of a name that came. */
  got<N extends CommandName>(name: N): HostCommand<N>[] {
    return this.received.filter((command) => command.name === name) as HostCommand<N>[];
  }

  #take(id: number, seq: number, payload: Uint8Array): boolean {
    if (id === this.dialect.messages.eventReply) {
      this.#eventReply(seq, payload);
      return true;
    }
    const definition = this.dialect.commandById(id);
    if (!definition) {
      this.channel.write(encodeErrorReply(id, seq, 1000));
      return true;
    }
    const { vcpu, body } = decodeCommand(definition, payload);
    if (body === undefined) throw new Error(`${definition.name} is cut`);
    const command: HostCommand = { name: definition.name, id, seq, vcpu, body };
    this.received.push(command);
    const script = this.#scripts.get(definition.name);
    const result = script ? script(command) : ({} as Replies[CommandName]);
    if (result instanceof Promise) void result.then((later) => this.answer(definition, seq, later));
    else this.answer(definition, seq, result);
    return true;
  }

  /** Sends the reply to a command, as a script's result says. */
  answer(
    definition: CommandDefinition,
    seq: number,
    result: Replies[CommandName] | number | undefined,
  ): void {
    if (result === undefined) return;
    this.channel.write(
      typeof result === 'number'
        ? encodeErrorReply(definition.id, seq, result)
        : encodeReply(definition, seq, result),
    );
  }

  #eventReply(seq: number, payload: Uint8Array): void {
    const head = decodeEventReply(payload)!;
    const waiting = this.#waiting.get(seq);
    if (!waiting) {
      this.strayReplies.push({ seq, vcpu: head.vcpu, action: head.action });
      return;
    }
    this.#waiting.delete(seq);
    const decoded = decodeEventReplyData(this.dialect.event(waiting.name)!, payload);
    if (!decoded) throw new Error(`the reply to ${waiting.name} is too long`);
    waiting.resolve({ action: actions[head.action]!, data: decoded.data });
  }

  /** How many events were not answered yet. */
  get unanswered(): number {
    return this.#waiting.size;
  }

  /** An event message. */
  message<N extends EventName>(
    name: N,
    vcpu: number,
    data: EventData[N],
    state?: Uint8Array,
  ): { seq: number; bytes: Uint8Array } {
    const definition = this.dialect.event(name);
    if (!definition) throw new Error(`${this.dialect.name} has no ${name}`);
    const seq = ++this.#seq;
    const message = new Uint8Array(MAX_EVENT_MESSAGE);
    if (state) message.set(state.subarray(0, STATE_SIZE), stateOffset(this.dialect));
    const length = encodeEvent(
      this.dialect,
      definition as typeof definition & { name: N },
      message,
      seq,
      vcpu,
      data,
    );
    return { seq, bytes: message.subarray(0, length) };
  }

  /** Sends an event; the result is the tool's answer. */
  event<N extends EventName>(
    name: N,
    vcpu: number,
    data: EventData[N],
    state?: Uint8Array,
  ): Promise<HostEventReply> {
    const { seq, bytes } = this.message(name, vcpu, data, state);
    const reply = deferred<HostEventReply>();
    this.#waiting.set(seq, { name, resolve: reply.resolve });
    this.channel.write(bytes);
    return reply.promise;
  }
}

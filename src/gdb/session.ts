import { deferred } from '../awaitable.ts';
import { messageOf } from '../error.ts';
import { encodePacket, type Incoming, MAX_PACKET, PacketReader } from '../rsp/packets.ts';
import type { Guest, GuestVcpu } from '../tool/index.ts';
import type { Channel } from '../transport/index.ts';
import { answer } from './commands.ts';
import { Execution, SIGNAL, type StopReason } from './execution.ts';
import { threadId } from './thread.ts';

/** Packets that wait while one is carried out, at most; the channel is not read meanwhile. */
const MAX_QUEUED = 32;

/** Bytes that GDB has not taken, at most: it asks for one thing at a time. */
const MAX_BACKLOG = 64 * MAX_PACKET;

/** What a packet's answer may need besides the guest. */
export interface SessionOptions {
  /** Called with what goes wrong on the way. */
  readonly onError?: (error: Error) => void;
}

/** One GDB, from its connection to its end. */
export class Session {
  readonly execution: Execution;
  readonly #channel: Channel;
  readonly #onError: (error: Error) => void;
  readonly #reader = new PacketReader();
  readonly #over = deferred<void>();
  #queue: Promise<unknown> = Promise.resolve();
  #queued = 0;
  #interrupting = false;
  #last = new Uint8Array(0);
  #ended = false;
  /** Whether packets are acknowledged. */
  acknowledging = true;
  /** Whether GDB knows `swbreak` in stop replies. */
  swbreak = false;
  /** The vCPU of `Hg`, which registers and memory are of. */
  selected: GuestVcpu;
  #reason: StopReason;

  constructor(guest: Guest, channel: Channel, options: SessionOptions) {
    this.#channel = channel;
    this.#onError = options.onError ?? (() => {});
    this.selected = guest.vcpus[0]!;
    this.#reason = { signal: SIGNAL.trap, vcpu: this.selected, breakpoint: false };
    this.execution = new Execution(guest, (reason) => this.#stopped(reason), this.report);
  }

  /** Serves until GDB detaches or vanishes, or the guest does. The guest runs on afterwards, with nothing left in it. */
  async run(): Promise<void> {
    const { guest } = this.execution;
    let attached = false;
    const gone = (): void => void this.#enqueue(async () => attached && this.#guestGone());
    this.#channel.open({ data: (bytes) => this.#received(bytes), close: () => this.#end() });
    await this.#enqueue(() => this.execution.halt(this.#reason));
    attached = true;
    void guest.closed.then(gone);
    await this.#over.promise;
    await this.execution.leave();
  }

  readonly report = (error: unknown): void => {
    if (!this.#ended) this.#onError(error instanceof Error ? error : new Error(String(error)));
  };

  #end(): void {
    this.#ended = true;
    this.#over.resolve();
  }

  #guestGone(): void {
    if (this.#ended) return;
    this.send('W00');
    this.hangUp();
  }

  #enqueue(section: () => unknown): Promise<void> {
    const done = this.#queue.then(section).then(() => {}, this.report);
    this.#queue = done;
    return done;
  }

  #received(bytes: Uint8Array): void {
    for (const incoming of this.#reader.feed(bytes)) if (!this.#ended) this.#take(incoming);
  }

  #take(incoming: Incoming): void {
    switch (incoming.kind) {
      case 'packet':
        if (this.acknowledging) this.#channel.write(Buffer.from('+'));
        this.#queuePacket(incoming.data);
        break;
      case 'corrupt':
        if (this.acknowledging) this.#channel.write(Buffer.from('-'));
        break;
      case 'nak':
        if (this.acknowledging) this.#write(this.#last);
        break;
      case 'interrupt':
        this.#queueInterrupt();
        break;
      case 'oversized':
        this.report(new Error('GDB sent a packet that is longer than was agreed'));
        this.hangUp();
        break;
      case 'ack':
        break;
    }
  }

  #queuePacket(data: Uint8Array): void {
    if (++this.#queued === MAX_QUEUED) this.#channel.pause();
    void this.#enqueue(async () => {
      try {
        if (!this.#ended) await this.#carryOut(data);
      } finally {
        if (this.#queued-- === MAX_QUEUED) this.#channel.resume();
      }
    });
  }

  async #carryOut(data: Uint8Array): Promise<void> {
    let reply: string | Uint8Array | undefined;
    try {
      reply = await answer(this, data);
    } catch (error) {
      this.report(new Error(`GDB's request failed: ${messageOf(error)}`, { cause: error }));
      reply = 'E01';
    }
    if (reply !== undefined) this.send(reply);
  }

  #queueInterrupt(): void {
    if (this.#interrupting) return;
    this.#interrupting = true;
    void this.#enqueue(() => {
      this.#interrupting = false;
      return this.#interrupt();
    });
  }

  #interrupt(): Promise<void> | undefined {
    if (!this.execution.running || this.#ended) return undefined;
    return this.execution.halt({ signal: SIGNAL.interrupt, vcpu: this.selected, breakpoint: false });
  }

  #stopped(reason: StopReason): void {
    // GDB asks for the first one.
    const attached = this.#reason !== reason;
    this.#reason = reason;
    this.selected = reason.vcpu;
    if (attached) this.send(this.stopReply());
  }

  /** The last stop as GDB is told. */
  stopReply(): string {
    const { signal, vcpu, breakpoint } = this.#reason;
    const why = breakpoint && this.swbreak ? 'swbreak:;' : '';
    return `T${signal.toString(16).padStart(2, '0')}${why}thread:${threadId(vcpu)};`;
  }

  send(reply: string | Uint8Array): void {
    const packet = new Uint8Array(encodePacket(reply));
    this.#last = packet;
    this.#write(packet);
  }

  #write(packet: Uint8Array): void {
    if (this.#ended) return;
    this.#channel.write(packet);
    if (this.#channel.backlog <= MAX_BACKLOG) return;
    this.report(new Error('GDB does not read what it asked for'));
    this.hangUp();
  }

  /** Ends the session; what was sent still goes out. */
  hangUp(): void {
    this.#channel.shutdown();
    this.#end();
  }
}

/** Serves one GDB on a channel until it leaves. See {@link Session.run}. */
export function serveGdb(guest: Guest, channel: Channel, options: SessionOptions = {}): Promise<void> {
  return new Session(guest, channel, options).run();
}

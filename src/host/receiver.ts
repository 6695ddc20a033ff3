import { type Awaitable, isPending } from '../awaitable.ts';
import type { Channel, ChannelHandler } from '../transport/index.ts';
import { FrameDecoder } from '../wire/index.ts';

/** A tool that does not read its replies is not read from either, beyond this many bytes. */
const MAX_BACKLOG = 1 << 20;

/** What the receiver needs of its hook. */
export interface ReceiverHook {
  readonly channel: Channel;
  /** No message is taken any more. */
  readonly ended: boolean;
  /** When the tool last sent something, in ms of performance.now(). */
  heardAt: number;
  /** Runs something whose failure ends the connection. */
  guarded(run: () => Awaitable<void>): Awaitable<void>;
  /** Ends the connection because of an error. */
  fail(error: unknown): void;
  /** The tool hung up. */
  end(): void;
}

/** Carries out one message. What it throws ends the connection. */
export type Dispatch = (id: number, seq: number, payload: Uint8Array) => Awaitable<void>;

/**
 * The receiving thread: takes messages in order, and takes the next one only when the command before it
 * is answered or queued.
 */
export class Receiver implements ChannelHandler {
  readonly #hook: ReceiverHook;
  readonly #dispatch: Dispatch;
  readonly #decoder: FrameDecoder;
  /** Received but not taken yet. */
  #waiting: Uint8Array[] = [];
  #busy = false;

  constructor(hook: ReceiverHook, dispatch: Dispatch) {
    this.#hook = hook;
    this.#dispatch = dispatch;
    this.#decoder = new FrameDecoder((id, seq, payload) => this.#take(id, seq, payload));
  }

  data(bytes: Uint8Array): void {
    if (this.#hook.ended) return;
    this.#hook.heardAt = performance.now();
    if (this.#busy) this.#waiting.push(bytes);
    else this.#push(bytes);
  }

  close(error?: Error): void {
    if (error) this.#hook.fail(error);
    else this.#hook.end();
  }

  drain(): void {
    if (this.#blocked) this.#resume();
  }

  #blocked = false;

  #push(bytes: Uint8Array): void {
    try {
      const taken = this.#decoder.push(bytes);
      if (taken < bytes.length && !this.#hook.ended) this.#waiting.unshift(bytes.subarray(taken));
    } catch (error) {
      this.#hook.fail(error);
    }
  }

  #take(id: number, seq: number, payload: Uint8Array): boolean {
    const done = this.#hook.guarded(() => this.#dispatch(id, seq, payload));
    if (this.#hook.ended) return false;
    if (isPending(done)) {
      this.#block();
      void done.then(() => this.#resume());
      return false;
    }
    if (this.#hook.channel.backlog <= MAX_BACKLOG) return true;
    this.#block();
    this.#blocked = true;
    return false;
  }

  #block(): void {
    this.#busy = true;
    this.#hook.channel.pause();
  }

  #resume(): void {
    this.#busy = false;
    this.#blocked = false;
    while (!this.#busy && !this.#hook.ended) {
      const next = this.#waiting.shift();
      if (!next) {
        this.#hook.channel.resume();
        return;
      }
      this.#push(next);
    }
  }
}

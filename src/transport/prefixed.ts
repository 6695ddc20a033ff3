import type { Channel, ChannelHandler } from './channel.ts';
import { ChannelWrapper } from './wrapper.ts';

/**
 * A paused channel of which too much was read: delivers those bytes first, once it is resumed.
 */
export class PrefixedChannel extends ChannelWrapper {
  readonly #prefix: Uint8Array[];
  #handler: ChannelHandler | undefined;
  #paused = true;

  constructor(inner: Channel, prefix: readonly Uint8Array[]) {
    super(inner);
    this.#prefix = [...prefix];
  }

  override open(handler: ChannelHandler): void {
    this.#handler = handler;
    this.inner.open(handler);
  }

  override pause(): void {
    this.#paused = true;
    this.inner.pause();
  }

  /** The handler may pause again while the first bytes are delivered. */
  override resume(): void {
    this.#paused = false;
    while (!this.#paused && this.#prefix.length > 0) this.#handler?.data(this.#prefix.shift()!);
    if (!this.#paused) this.inner.resume();
  }
}

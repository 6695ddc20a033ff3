import type { Channel, ChannelHandler } from './channel.ts';
import { ChannelWrapper } from './wrapper.ts';

/**
 * A paused channel of which too much was read: delivers those bytes first, once it is resumed.
 */
export class PrefixedChannel extends ChannelWrapper {
  readonly #prefix: Uint8Array[];
  #handler: ChannelHandler | undefined;

  constructor(inner: Channel, prefix: readonly Uint8Array[]) {
    super(inner);
    this.#prefix = [...prefix];
  }

  override open(handler: ChannelHandler): void {
    this.#handler = handler;
    this.inner.open(handler);
  }

  override resume(): void {
    for (let bytes = this.#prefix.shift(); bytes; bytes = this.#prefix.shift()) this.#handler?.data(bytes);
    this.inner.resume();
  }
}

import type { Channel, ChannelHandler } from './channel.ts';

/**
 * A paused channel of which too much was read: delivers those bytes first, once it is resumed.
 */
export class PrefixedChannel implements Channel {
  readonly #channel: Channel;
  readonly #prefix: Uint8Array[];
  #handler: ChannelHandler | undefined;

  constructor(channel: Channel, prefix: readonly Uint8Array[]) {
    this.#channel = channel;
    this.#prefix = [...prefix];
  }

  get peer(): string {
    return this.#channel.peer;
  }

  get backlog(): number {
    return this.#channel.backlog;
  }

  open(handler: ChannelHandler): void {
    this.#handler = handler;
    this.#channel.open(handler);
  }

  write(bytes: Uint8Array): void {
    this.#channel.write(bytes);
  }

  pause(): void {
    this.#channel.pause();
  }

  resume(): void {
    for (let bytes = this.#prefix.shift(); bytes; bytes = this.#prefix.shift()) this.#handler?.data(bytes);
    this.#channel.resume();
  }

  shutdown(): void {
    this.#channel.shutdown();
  }
}

import type { Channel, ChannelHandler } from './channel.ts';

/**
 * Two channels in this process: what is written to one is delivered by the other.
 *
 * `write` delivers before it returns when the other end is open, not paused and not handling an earlier
 * delivery; otherwise the bytes wait and whoever is delivering takes them along, so that two ends which
 * answer each other do not recurse.
 */
export function loopback(name = 'loopback'): [Channel, Channel] {
  const a = new LoopbackEnd(name);
  const b = new LoopbackEnd(name);
  a.other = b;
  b.other = a;
  return [a, b];
}

/** Delivered entries of the queue are cut off when there are this many. */
const COMPACT_AT = 1024;

class LoopbackEnd implements Channel {
  readonly peer: string;
  other!: LoopbackEnd;
  #handler: ChannelHandler | undefined;
  /** What this end has still to deliver, from `#next` on. */
  #incoming: Uint8Array[] = [];
  #next = 0;
  #incomingBytes = 0;
  #delivering = false;
  #paused = false;
  /** Nothing more arrives: a close follows what is there. */
  #ended = false;
  #closed = false;

  constructor(name: string) {
    this.peer = name;
  }

  get backlog(): number {
    return this.other.#incomingBytes;
  }

  open(handler: ChannelHandler): void {
    const first = this.#handler === undefined;
    this.#handler = handler;
    if (first) this.#drain();
  }

  write(bytes: Uint8Array): void {
    if (!this.#ended && bytes.length > 0) this.other.#receive(bytes);
  }

  pause(): void {
    this.#paused = true;
  }

  resume(): void {
    this.#paused = false;
    this.#drain();
  }

  shutdown(): void {
    if (this.#ended) return;
    this.#incoming = [];
    this.#next = 0;
    this.#incomingBytes = 0;
    this.#end();
    this.other.#end();
  }

  #receive(bytes: Uint8Array): void {
    if (this.#ended) return;
    if (this.#incomingBytes === 0 && !this.#delivering && !this.#paused && this.#handler) {
      this.#delivering = true;
      try {
        this.#handler.data(bytes);
      } finally {
        this.#delivering = false;
      }
      if (this.#incomingBytes > 0 || this.#ended) this.#drain();
      return;
    }
    this.#incoming.push(bytes);
    this.#incomingBytes += bytes.length;
  }

  #end(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#drain();
  }

  #drain(): void {
    if (this.#delivering || this.#handler === undefined) return;
    const waited = this.#incomingBytes > 0;
    this.#delivering = true;
    try {
      while (!this.#paused && this.#incomingBytes > 0) this.#handler.data(this.#take());
    } finally {
      this.#delivering = false;
    }
    if (waited && this.#incomingBytes === 0 && !this.#ended) this.other.#handler?.drain?.();
    if (this.#ended && !this.#closed && this.#incomingBytes === 0) {
      this.#closed = true;
      process.nextTick(() => this.#handler!.close());
    }
  }

  #take(): Uint8Array {
    const bytes = this.#incoming[this.#next++]!;
    this.#incomingBytes -= bytes.length;
    if (this.#next === this.#incoming.length || this.#next === COMPACT_AT) {
      this.#incoming.splice(0, this.#next);
      this.#next = 0;
    }
    return bytes;
  }
}

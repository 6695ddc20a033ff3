import type { Channel, ChannelHandler } from './channel.ts';

/** A channel in front of another one: passes everything on; subclasses change what they are there for. */
export class ChannelWrapper implements Channel {
  protected readonly inner: Channel;

  constructor(inner: Channel) {
    this.inner = inner;
  }

  get peer(): string {
    return this.inner.peer;
  }

  get backlog(): number {
    return this.inner.backlog;
  }

  open(handler: ChannelHandler): void {
    this.inner.open(handler);
  }

  write(bytes: Uint8Array): void {
    this.inner.write(bytes);
  }

  pause(): void {
    this.inner.pause();
  }

  resume(): void {
    this.inner.resume();
  }

  shutdown(): void {
    this.inner.shutdown();
  }
}

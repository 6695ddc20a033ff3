import { ERRNO, errnoName } from '../abi/errno.ts';
import { POLL } from '../abi/linux.ts';
import { libc } from '../system/libc.ts';
import { pump, type Watch } from '../system/pump.ts';
import type { Channel, ChannelHandler } from '../transport/index.ts';

const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
const SHUT_RDWR = 2;
const { EINTR, EAGAIN, EPIPE, ECONNRESET } = ERRNO;
const SOL_SOCKET = 1;
const SO_TYPE = 3;
const RECEIVE_SIZE = 65536;

/** Whether a descriptor is a socket; KVM_INTROSPECTION_HOOK asks for no more. */
export function isSocket(fd: number): boolean {
  const value = new Uint8Array(4);
  return libc().getsockopt(fd, SOL_SOCKET, SO_TYPE, value, Uint8Array.of(4, 0, 0, 0)) === 0;
}

/**
 * A channel over a socket that another process has, too.
 *
 * The socket's flags are left alone: a VMM that expects a blocking socket keeps one.
 */
export class SharedSocketChannel implements Channel {
  readonly peer: string;
  readonly #fd: number;
  readonly #received = new Uint8Array(RECEIVE_SIZE);
  #handler: ChannelHandler | undefined;
  #watch: Watch | undefined;
  #queue: Uint8Array[] = [];
  #queued = 0;
  #paused = false;
  #ended = false;
  #error: Error | undefined;

  /** Takes over `fd`, which is this process's own duplicate. */
  constructor(fd: number, peer: string) {
    this.#fd = fd;
    this.peer = peer;
  }

  get backlog(): number {
    return this.#queued;
  }

  open(handler: ChannelHandler): void {
    const first = this.#handler === undefined;
    this.#handler = handler;
    if (!first) return;
    if (this.#ended) {
      process.nextTick(() => handler.close(this.#error));
      return;
    }
    this.#watch = pump.watch(this.#fd, this.#events(), (events) => this.#ready(events));
  }

  #events(): number {
    return (this.#paused ? 0 : POLL.IN) | (this.#queued > 0 ? POLL.OUT : 0);
  }

  #ready(events: number): void {
    if (events & POLL.OUT) this.#flush();
    if (events & POLL.IN) this.#receive();
    else if (events & (POLL.ERR | POLL.HUP | POLL.NVAL)) this.#end();
  }

  #receive(): void {
    const { recv, errno } = libc();
    const size = recv(this.#fd, this.#received, RECEIVE_SIZE, MSG_DONTWAIT);
    if (size > 0) {
      this.#handler!.data(this.#received.slice(0, size));
      return;
    }
    if (size === 0) this.#end();
    else this.#failed('recv', errno());
  }

  #failed(what: string, errno: number): void {
    if (errno === EAGAIN || errno === EINTR) return;
    const hungUp = errno === EPIPE || errno === ECONNRESET;
    this.#end(hungUp ? undefined : new Error(`${what} on ${this.peer}: ${errnoName(errno)}`));
  }

  write(bytes: Uint8Array): void {
    if (this.#ended || bytes.length === 0) return;
    this.#queue.push(bytes);
    this.#queued += bytes.length;
    this.#flush();
  }

  #flush(): void {
    const { send, errno } = libc();
    while (!this.#ended) {
      const bytes = this.#queue[0];
      if (!bytes) break;
      const sent = send(this.#fd, bytes, bytes.length, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (sent < 0) {
        this.#failed('send', errno());
        break;
      }
      this.#queued -= sent;
      if (sent < bytes.length) this.#queue[0] = bytes.subarray(sent);
      else this.#queue.shift();
    }
    if (!this.#watch || this.#ended) return;
    const waited = (this.#watch.events & POLL.OUT) !== 0;
    this.#watch.events = this.#events();
    if (waited && this.#queued === 0) this.#handler?.drain?.();
  }

  pause(): void {
    this.#paused = true;
    if (this.#watch) this.#watch.events = this.#events();
  }

  resume(): void {
    this.#paused = false;
    if (this.#watch) this.#watch.events = this.#events();
  }

  shutdown(): void {
    this.#end();
  }

  #end(error?: Error): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#error = error;
    this.#watch?.stop();
    const { shutdown, close } = libc();
    shutdown(this.#fd, SHUT_RDWR);
    close(this.#fd);
    this.#queue.length = 0;
    this.#queued = 0;
    if (this.#handler) process.nextTick(() => this.#handler!.close(error));
  }
}

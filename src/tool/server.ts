import { KvmiError } from '../error.ts';
import { type Channel, type Listener, listen as listenOn, parseAddress } from '../transport/index.ts';
import { AsyncQueue } from './async-queue.ts';
import { type ConnectGuestOptions, connectGuest } from './connect.ts';
import type { Guest } from './guest.ts';

export type ListenOptions = Omit<ConnectGuestOptions, 'hello' | 'symbols'>;

/** Connections that may be in their handshake at once; more are hung up on. */
const MAX_HANDSHAKES = 64;

/** A socket that device managers connect to. Iterating gives each guest once it is ready. */
export class ToolServer implements AsyncIterable<Guest> {
  readonly #listener: Listener;
  readonly #accepting: Accepting;

  /** Use {@link listen}. @internal */
  constructor(listener: Listener, accepting: Accepting) {
    this.#listener = listener;
    this.#accepting = accepting;
  }

  /** Where it listens; with the port that the system chose, when it did. */
  get address(): string {
    return this.#listener.address;
  }

  /** Guests in the order in which they connected. Leaving the loop does not close the server. */
  async *[Symbol.asyncIterator](): AsyncGenerator<Guest, void> {
    for (;;) {
      const { done, value } = await this.#accepting.guests.next();
      if (done) return;
      yield value;
    }
  }

  /** Accepts no more; hangs up on guests that nobody took yet. Those that were taken stay. Idempotent. */
  async close(): Promise<void> {
    await this.#listener.close();
    await this.#accepting.close();
  }
}

/** Turns connections into guests. */
class Accepting {
  readonly guests = new AsyncQueue<Guest>(() => {});
  readonly #options: ListenOptions;
  readonly #handshakes = new Set<Channel>();
  #closed = false;

  constructor(options: ListenOptions) {
    this.#options = options;
  }

  readonly accept = (channel: Channel): void => {
    if (this.#closed || this.#handshakes.size >= MAX_HANDSHAKES) {
      channel.shutdown();
      return;
    }
    this.#handshakes.add(channel);
    void this.#connect(channel);
  };

  async #connect(channel: Channel): Promise<void> {
    try {
      const guest = await connectGuest(channel, this.#options);
      if (this.#closed) await guest.detach();
      else this.guests.push(guest);
    } catch (error) {
      if (!this.#closed) this.#report(channel, error as Error);
    } finally {
      this.#handshakes.delete(channel);
    }
  }

  #report(channel: Channel, cause: Error): void {
    const hint = cause instanceof KvmiError ? cause.hint : undefined;
    const error = new KvmiError('E_CONNECT', `a connection to ${channel.peer} failed: ${cause.message}`, {
      ...(hint && { hint }),
      cause,
    });
    if (this.#options.onError) this.#options.onError(error);
    else process.emitWarning(error);
  }

  async close(): Promise<void> {
    this.#closed = true;
    for (const channel of this.#handshakes) channel.shutdown();
    this.guests.end();
    for (;;) {
      const { done, value } = await this.guests.next();
      if (done) return;
      await value.detach();
    }
  }
}

/**
 * Listens for device managers on `unix:PATH` (only its owner can connect) or `tcp:HOST:PORT` (only with a cookie).
 *
 * ```ts
 * const server = await listen('unix:/run/tool.sock');
 * for await (const guest of server) {
 *   console.log(guest.name, guest.vcpus.length);
 *   await guest.detach();
 * }
 * ```
 *
 * A connection that fails is reported to `onError` and disturbs no other.
 *
 * @throws KvmiError with code E_ADDRESS, E_LISTEN, E_IN_USE, E_COOKIE (TCP without one), or E_UNSUPPORTED (vsock).
 */
export async function listen(address: string, options: ListenOptions = {}): Promise<ToolServer> {
  if (parseAddress(address).kind === 'tcp' && !options.cookie) {
    throw new KvmiError('E_COOKIE', `listening on ${address} needs a cookie: anybody could connect`, {
      hint: 'Give both ends the same secret, or listen on unix:PATH.',
      data: { address },
    });
  }
  const accepting = new Accepting(options);
  return new ToolServer(await listenOn(address, accepting.accept), accepting);
}

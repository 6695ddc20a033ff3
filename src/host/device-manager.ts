import { deferred } from '../awaitable.ts';
import type { Machine, PreUnhookReason } from '../machine/index.ts';
import { type Channel, PrefixedChannel } from '../transport/index.ts';
import {
  type CommandName,
  cookieMatches,
  DIALECTS,
  type DialectName,
  type EventName,
  encodeHello,
  HandshakeError,
  HandshakeReader,
} from '../wire/index.ts';
import { hookError } from './hook-error.ts';
import { Introspection } from './introspection.ts';
import { HookLog, type Log, logLineOf, SILENT, vmLabel } from './log.ts';

export interface ServeOptions {
  readonly dialect?: DialectName;
  /** The shared secret. With it a tool that does not know it is refused; without it anybody is accepted. */
  readonly cookie?: Uint8Array;
  /** Nobody else can be at the other end, as `isPrivateSocket` tells: no warning without a cookie. */
  readonly privateChannel?: boolean;
  /** How long the tool may take for its handshake, in ms. Default 10 s. */
  readonly handshakeTimeout?: number;
  /** How long a tool gets to unhook before the machine is suspended, migrated or shut down, in ms. Default 60 s. */
  readonly unhookTimeout?: number;
  /**
   * How long a tool that owes an answer to an event (PAUSE excepted) may be silent, in ms; then it is
   * unhooked and the guest goes on. Default 0: for ever, as in the kernel.
   */
  readonly eventTimeout?: number;
  /** What the tool may use. Default: everything. */
  readonly allowCommands?: readonly CommandName[];
  readonly allowEvents?: readonly EventName[];
  /** Sends the memory map with the handshake (the second variant of the structure). */
  readonly sendMemoryMap?: boolean;
  readonly log?: Log;
  /** Ends the hook when aborted. */
  readonly signal?: AbortSignal;
}

/** Why a hook ended. */
export type ServeEnd = 'tool' | 'machine' | 'aborted' | 'stalled' | PreUnhookReason;

/**
 * Does what a device manager does with a connection to a tool: handshake, HOOK, permissions; then serves
 * until the tool hangs up, the machine ends or goes away, or `signal` aborts; then UNHOOK.
 *
 * @returns why it ended.
 * @throws HandshakeError, or a KvmiError with code E_BUSY or E_HOOK that says why the machine could not be hooked.
 */
export async function serve(
  machine: Machine,
  channel: Channel,
  options: ServeOptions = {},
): Promise<ServeEnd> {
  return new DeviceManager(machine, channel, options).run();
}

const HANDSHAKE_TIMEOUT = 10_000;
const UNHOOK_TIMEOUT = 60_000;
const STALL_CHECK_INTERVAL = 250;

class DeviceManager {
  readonly #machine: Machine;
  readonly #channel: Channel;
  readonly #options: ServeOptions;
  readonly #log: HookLog;
  readonly #introspection: Introspection;
  readonly #ended: Promise<ServeEnd>;
  #end!: (why: ServeEnd) => void;

  constructor(machine: Machine, channel: Channel, options: ServeOptions) {
    this.#machine = machine;
    this.#channel = channel;
    this.#options = options;
    this.#log = new HookLog(options.log ?? SILENT, vmLabel(machine.name, machine.uuid));
    this.#ended = new Promise((resolve) => {
      this.#end = resolve;
    });
    this.#introspection = new Introspection(machine, {
      ...(options.dialect && { dialect: options.dialect }),
      ...(options.log && { log: options.log }),
      onPreUnhook: (reason) => this.#preUnhook(reason),
      onClosed: (error) => {
        if (error) this.#log.error(logLineOf(error));
        this.#end('machine');
      },
    });
  }

  async run(): Promise<ServeEnd> {
    const { signal, eventTimeout = 0 } = this.#options;
    const abort = (): void => this.#end('aborted');
    signal?.addEventListener('abort', abort, { once: true });
    let stallCheck: NodeJS.Timeout | undefined;
    try {
      const rest = await this.#handshake();
      await this.#hook(rest);
      if (eventTimeout > 0) {
        stallCheck = setInterval(() => this.#checkStall(eventTimeout), STALL_CHECK_INTERVAL);
      }
      // The end of the machine disconnects the tool, too.
      void this.#introspection.disconnected.then(() =>
        this.#end(this.#introspection.machineGone ? 'machine' : 'tool'),
      );
      if (signal?.aborted) abort();
      return await this.#ended;
    } finally {
      clearInterval(stallCheck);
      signal?.removeEventListener('abort', abort);
      await this.#introspection.unhook();
      this.#channel.shutdown();
    }
  }

  /** Exchanges the two structures. Returns what the tool sent after its own: that is KVMI already. */
  #handshake(): Promise<Uint8Array[]> {
    const { handshakeTimeout = HANDSHAKE_TIMEOUT } = this.#options;
    const reader = HandshakeReader.answer();
    const rest: Uint8Array[] = [];
    const { promise, resolve, reject } = deferred<Uint8Array[]>();
    const timer = setTimeout(
      () =>
        reject(
          new HandshakeError(`the tool at ${this.#channel.peer} sent no handshake in ${handshakeTimeout} ms`),
        ),
      handshakeTimeout,
    );
    this.#channel.open({
      data: (bytes) => {
        try {
          const taken = reader.push(bytes);
          if (taken < bytes.length) rest.push(bytes.subarray(taken));
          if (!reader.complete) return;
          this.#channel.pause();
          this.#checkCookie(reader.readCookieHash());
          resolve(rest);
        } catch (error) {
          reject(error);
        }
      },
      close: (error) =>
        reject(
          new HandshakeError(
            `the tool at ${this.#channel.peer} hung up during the handshake${error ? `: ${error.message}` : ''}`,
          ),
        ),
    });
    this.#channel.write(encodeHello(this.#hello()));
    return promise.finally(() => clearTimeout(timer));
  }

  #hello() {
    const { name, uuid, startTime, memory } = this.#machine;
    if (!this.#options.sendMemoryMap) return { name, uuid, startTime };
    const memoryMap = memory.regions
      .filter((region) => !region.readonly)
      .map((region) => ({ address: region.gpa, length: region.size, type: 1 }));
    return { name, uuid, startTime, memoryMap };
  }

  #checkCookie(hash: Uint8Array): void {
    const { cookie, privateChannel } = this.#options;
    if (!cookie) {
      if (!privateChannel) this.#log.warn('no cookie is set: any tool is accepted');
    } else if (!cookieMatches(hash, cookie)) {
      throw new HandshakeError(
        `the tool at ${this.#channel.peer} does not know the cookie`,
        'Give the tool and this command the same cookie file.',
      );
    }
  }

  async #hook(rest: readonly Uint8Array[]): Promise<void> {
    const socket = new PrefixedChannel(this.#channel, rest);
    const result = await this.#introspection.hook({ socket, uuid: this.#machine.uuid });
    if (result !== 0) throw hookError(this.#machine.name, result, this.#introspection.lastError);
    const { allowCommands, allowEvents, dialect = 'v12' } = this.#options;
    const { command, event } = DIALECTS[dialect];
    for (const id of allowCommands?.map((name) => command(name)?.id) ?? [-1]) {
      if (id !== undefined) await this.#introspection.command({ allow: 1, id });
    }
    for (const id of allowEvents?.map((name) => event(name)?.id) ?? [-1]) {
      if (id !== undefined) await this.#introspection.event({ allow: 1, id });
    }
    socket.resume();
  }

  #checkStall(limit: number): void {
    if (this.#introspection.stalledFor() < limit) return;
    this.#log.error(`the tool has owed an answer to an event for ${limit} ms: unhooking`);
    this.#end('stalled');
  }

  /** Offers the tool to unhook by itself; waits until it hung up, or unhooks it. */
  async #preUnhook(reason: PreUnhookReason): Promise<void> {
    const { unhookTimeout = UNHOOK_TIMEOUT } = this.#options;
    if ((await this.#introspection.preUnhook()) === 0) {
      const { promise, resolve } = deferred<'timeout'>();
      const timer = setTimeout(resolve, unhookTimeout, 'timeout');
      const result = await Promise.race([this.#introspection.disconnected, promise]);
      clearTimeout(timer);
      if (result === 'timeout') this.#log.warn(`the tool did not unhook in ${unhookTimeout} ms`);
    }
    this.#end(reason);
    await this.#introspection.unhook();
  }
}

import { setTimeout as delay } from 'node:timers/promises';
import { getU32 } from '../abi/bytes.ts';
import { KVM_ERRNO } from '../abi/errno.ts';
import { deferred } from '../awaitable.ts';
import { KvmiError } from '../error.ts';
import { PAGE_SIZE } from '../machine/index.ts';
import type { Channel } from '../transport/index.ts';
import {
  cookieHash,
  DIALECTS,
  type DialectName,
  ERROR_SIZE,
  encodeAnswer,
  FrameDecoder,
  HandshakeError,
  type HandshakeHello,
  HandshakeReader,
  HEADER_SIZE,
  ProtocolError,
  putHeader,
  ReplyError,
} from '../wire/index.ts';
import { Connection } from './connection.ts';
import { Guest, type GuestParts } from './guest.ts';
import type { SymbolResolver } from './probes.ts';
import { findRegions, regionsOf } from './regions.ts';

export interface ConnectGuestOptions {
  /** `auto` finds it out by asking (GET_VERSION in a way that all dialects answer). Default v12. */
  readonly dialect?: DialectName | 'auto';
  /** The shared secret: a device manager that has one too accepts only a tool that knows it. */
  readonly cookie?: Uint8Array;
  /** How long the device manager may take to introduce itself, in ms. Default 10 s. */
  readonly handshakeTimeout?: number;
  /** How long a command may take, in ms. Default 15 s. */
  readonly requestTimeout?: number;
  /**
   * Gets what has no other way to surface: a handler that threw, an answer that was refused, a breakpoint that was
   * lost. Default: `process.emitWarning`.
   */
  readonly onError?: (error: Error) => void;
  /** Looks symbols up for `guest.probes`. */
  readonly symbols?: SymbolResolver;
  /** Who the guest is, when the handshake was done by somebody else; none is done then. */
  readonly hello?: HandshakeHello;
}

const HANDSHAKE_TIMEOUT_MS = 10_000;
const REQUEST_TIMEOUT_MS = 15_000;
/** A device manager hooks first and gives permissions then: commands may be refused for so long. */
const PERMISSION_RETRIES = 10;
const PERMISSION_DELAY_MS = 10;

/**
 * Does the tool's side on a channel: handshake, GET_VERSION, and what a {@link Guest} has to know.
 *
 * @throws HandshakeError, ProtocolError, ReplyError, or KvmiError with code E_TIMEOUT or E_CLOSED; the channel is
 * closed then.
 */
export async function connectGuest(
  channel: Channel,
  options: ConnectGuestOptions & Pick<GuestParts, 'probes'> = {},
): Promise<Guest> {
  try {
    return await connect(channel, options);
  } catch (error) {
    channel.shutdown();
    throw error;
  }
}

async function connect(channel: Channel, options: ConnectGuestOptions & GuestParts): Promise<Guest> {
  const { dialect = 'v12', requestTimeout = REQUEST_TIMEOUT_MS, onError = warn } = options;
  const hello = options.hello ?? (await handshake(channel, options));
  const spoken = dialect === 'auto' ? await probe(channel, requestTimeout) : dialect;
  const connection = new Connection(channel, DIALECTS[spoken], requestTimeout, onError);
  channel.open(connection);
  const features = await connection.requests.send('GET_VERSION', {});
  if (features.version < 1) throw new ProtocolError(`the host side speaks KVMI version ${features.version}`);
  const count = await vcpuCount(connection);
  const guest = new Guest(connection, hello, features, count, options);
  guest.memory.regions = hello.memoryMap ? regionsOf(hello.memoryMap) : await regionsByReading(guest);
  return guest;
}

function warn(error: Error): void {
  process.emitWarning(error);
}

/** Takes the device manager's structure and sends the tool's. */
async function handshake(channel: Channel, options: ConnectGuestOptions): Promise<HandshakeHello> {
  const { handshakeTimeout = HANDSHAKE_TIMEOUT_MS, cookie } = options;
  const reader = HandshakeReader.hello();
  const hello = await exchange<HandshakeHello>(channel, handshakeTimeout, 'the handshake', (bytes) => {
    const taken = reader.push(bytes);
    if (!reader.complete) return undefined;
    if (taken < bytes.length) throw new HandshakeError('the peer sent more than its handshake');
    return reader.readHello();
  });
  channel.write(encodeAnswer(cookie && cookieHash(cookie)));
  return hello;
}

/**
 * Message 2 without a body is GET_VERSION in v7 and v12, told apart by the word after the version; v9 takes it for
 * VM_CHECK_COMMAND, which has no data in its reply.
 */
async function probe(channel: Channel, timeout: number): Promise<DialectName> {
  const message = new Uint8Array(HEADER_SIZE);
  putHeader(message, 0, PROBE_ID, 0, PROBE_SEQ);
  let found: DialectName | undefined;
  const decoder = new FrameDecoder((id, seq, payload) => {
    if (id !== PROBE_ID || seq !== PROBE_SEQ) return true;
    if (payload.length <= ERROR_SIZE) found = 'v9';
    else found = getU32(payload, ERROR_SIZE + 4) === 0 ? 'v7' : 'v12';
    return true;
  });
  const answered = exchange(channel, timeout, 'the search for its dialect', (bytes) => {
    decoder.push(bytes);
    return found;
  });
  channel.write(message);
  return answered;
}

const PROBE_ID = 2;
const PROBE_SEQ = 0;

/** Feeds `take` until it has a result. */
function exchange<T>(
  channel: Channel,
  timeout: number,
  what: string,
  take: (bytes: Uint8Array) => T | undefined,
): Promise<T> {
  const { promise, resolve, reject } = deferred<T>();
  const timer = setTimeout(() => {
    reject(
      new KvmiError('E_TIMEOUT', `${channel.peer} did not complete ${what} within ${timeout} ms`, {
        hint: 'Check that the other end is a device manager that speaks the KVMI handshake.',
      }),
    );
  }, timeout);
  channel.open({
    data(bytes) {
      try {
        const result = take(bytes);
        if (result !== undefined) resolve(result);
      } catch (error) {
        reject(error);
      }
    },
    close(error) {
      reject(
        new KvmiError('E_CLOSED', `${channel.peer} hung up during ${what}`, {
          hint: 'A device manager with a cookie hangs up on a tool that has none, or another one.',
          ...(error && { cause: error }),
        }),
      );
    },
  });
  return promise.finally(() => clearTimeout(timer));
}

async function vcpuCount(connection: Connection): Promise<number> {
  for (let attempt = 0; ; attempt++) {
    try {
      return (await connection.requests.send('VM_GET_INFO', {})).vcpu_count;
    } catch (error) {
      const refused = error instanceof ReplyError && error.errno === KVM_ERRNO.KVM_EPERM;
      if (!refused || attempt === PERMISSION_RETRIES) throw error;
      await delay(PERMISSION_DELAY_MS * (attempt + 1));
    }
  }
}

async function regionsByReading(guest: Guest) {
  const limit = guest.dialect === 'v12' ? undefined : await guest.maxGfn().catch(() => undefined);
  return findRegions(guest.memory, limit && limit * PAGE_SIZE);
}

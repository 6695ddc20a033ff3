import { createConnection, createServer, type Server, type Socket } from 'node:net';
import { KvmiError, messageOf } from '../error.ts';
import type { ErrorCode } from '../error-codes.ts';
import { type Address, formatAddress, parseAddress } from './address.ts';
import type { Channel } from './channel.ts';
import { SocketChannel } from './socket-channel.ts';
import { UnixPath } from './unix-path.ts';

export interface ConnectOptions {
  /** In milliseconds; 10,000 when not given. */
  readonly timeout?: number;
}

const CONNECT_TIMEOUT_MS = 10_000;

const CONNECT_HINTS: Readonly<Record<string, string>> = {
  ECONNREFUSED: 'Nobody listens there. Start the tool first.',
  ENOENT: 'There is no such socket. Start the tool first, or correct the path.',
  EACCES: 'The socket belongs to another user. Run as the user who started the tool.',
  EPERM: 'The socket belongs to another user. Run as the user who started the tool.',
};

/**
 * Connects to `unix:PATH` or `tcp:HOST:PORT`.
 *
 * @throws KvmiError with code E_ADDRESS, E_CONNECT, E_TIMEOUT, or E_UNSUPPORTED (vsock).
 */
export function connect(address: string, options: ConnectOptions = {}): Promise<Channel> {
  const timeout = options.timeout ?? CONNECT_TIMEOUT_MS;
  return new Promise((resolve, reject) => {
    const socket = createConnection(connectionOptions(parseAddress(address)));
    const timer = setTimeout(() => {
      socket.destroy();
      reject(
        new KvmiError('E_TIMEOUT', `no answer from ${address} within ${timeout} ms`, { data: { address } }),
      );
    }, timeout);
    const failed = (error: NodeJS.ErrnoException) => {
      clearTimeout(timer);
      reject(netError('E_CONNECT', `cannot connect to ${address}`, address, error, CONNECT_HINTS));
    };
    socket.once('error', failed);
    socket.once('connect', () => {
      clearTimeout(timer);
      socket.off('error', failed);
      socket.setNoDelay();
      resolve(new SocketChannel(socket, address));
    });
  });
}

function connectionOptions(address: Address): { path: string } | { host: string; port: number } {
  return address.kind === 'vsock' ? refuseVsock(address) : withoutKind(address);
}

function withoutKind(address: Exclude<Address, { kind: 'vsock' }>) {
  return address.kind === 'unix' ? { path: address.path } : { host: address.host, port: address.port };
}

function refuseVsock(address: Address & { kind: 'vsock' }): never {
  throw new KvmiError('E_UNSUPPORTED', `${formatAddress(address)}: Node.js has no vsock sockets`, {
    hint: `Bridge it to a Unix socket: socat VSOCK-LISTEN:${address.port},fork UNIX-CONNECT:/run/tool.sock, or VSOCK-CONNECT:${address.cid}:${address.port} for the other direction.`,
    data: { address: formatAddress(address) },
  });
}

function netError(
  code: ErrorCode,
  what: string,
  address: string,
  cause: NodeJS.ErrnoException,
  hints: Readonly<Record<string, string>>,
): KvmiError {
  const hint = hints[cause.code ?? ''];
  return new KvmiError(code, `${what}: ${messageOf(cause)}`, {
    ...(hint ? { hint } : {}),
    data: { address, errno: cause.code },
    cause,
  });
}

/** A listening socket. */
export interface Listener {
  /** Where it listens; with the port that the system chose, when it did. */
  readonly address: string;
  /** Accepts no more, and removes a Unix socket's path. Channels that were accepted stay. Idempotent. */
  close(): Promise<void>;
}

const LISTEN_HINTS: Readonly<Record<string, string>> = {
  EADDRINUSE: 'Somebody listens there already. Choose another port.',
  EACCES: 'Choose a place that this user may write to, or a port from 1024 on.',
  EADDRNOTAVAIL: 'The host has no such address.',
};

/**
 * Listens on `unix:PATH` or `tcp:HOST:PORT` and hands each connection to `accepted`.
 *
 * A Unix socket is only open to its owner (mode 0600) from the moment it can be connected to. A socket that
 * somebody left behind at that path is replaced; one that is in use, and anything that is not a socket, is not.
 *
 * @throws KvmiError with code E_ADDRESS, E_LISTEN, E_IN_USE, or E_UNSUPPORTED (vsock).
 */
export async function listen(address: string, accepted: (channel: Channel) => void): Promise<Listener> {
  const parsed = parseAddress(address);
  if (parsed.kind === 'vsock') refuseVsock(parsed);
  const server = createServer((socket) => {
    socket.setNoDelay();
    accepted(new SocketChannel(socket, peerOf(socket, address)));
  });
  return parsed.kind === 'unix'
    ? listenUnix(server, parsed.path, address)
    : listenTcp(server, parsed, address);
}

function peerOf(socket: Socket, address: string): string {
  const { remoteAddress, remotePort } = socket;
  if (remoteAddress === undefined || remotePort === undefined) return address;
  return formatAddress({ kind: 'tcp', host: remoteAddress, port: remotePort });
}

async function listenUnix(server: Server, path: string, address: string): Promise<Listener> {
  const place = await UnixPath.claim(path);
  try {
    await listening(server, { path: place.bindPath }, address);
    place.publish();
  } catch (error) {
    server.close();
    place.abandon();
    throw error;
  }
  return {
    address,
    async close() {
      place.remove();
      server.close();
    },
  };
}

async function listenTcp(
  server: Server,
  { host, port }: { host: string; port: number },
  address: string,
): Promise<Listener> {
  await listening(server, { host, port }, address);
  const bound = server.address();
  const chosen = bound !== null && typeof bound === 'object' ? bound.port : port;
  return {
    address: formatAddress({ kind: 'tcp', host, port: chosen }),
    async close() {
      server.close();
    },
  };
}

function listening(
  server: Server,
  where: { path: string } | { host: string; port: number },
  address: string,
): Promise<void> {
  return new Promise((resolve, reject) => {
    const failed = (error: NodeJS.ErrnoException) => {
      reject(netError('E_LISTEN', `cannot listen on ${address}`, address, error, LISTEN_HINTS));
    };
    server.once('error', failed);
    server.listen(where, () => {
      server.off('error', failed);
      // A failure to accept one connection (out of descriptors) is not the end of the others.
      server.on('error', () => {});
      resolve();
    });
  });
}

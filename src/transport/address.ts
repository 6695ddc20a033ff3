import { isIPv6 } from 'node:net';
import { KvmiError } from '../error.ts';

/** Where a channel leads to, as the user writes it: `unix:PATH`, `tcp:HOST:PORT` or `vsock:CID:PORT`. */
export type Address =
  | { readonly kind: 'unix'; readonly path: string }
  | { readonly kind: 'tcp'; readonly host: string; readonly port: number }
  | { readonly kind: 'vsock'; readonly cid: number; readonly port: number };

const HINT = 'Write unix:/run/tool.sock, tcp:127.0.0.1:4321 or tcp:[::1]:4321.';

function addressError(text: string, why: string, hint = HINT): KvmiError {
  return new KvmiError('E_ADDRESS', `address ${JSON.stringify(text)}: ${why}`, {
    hint,
    data: { address: text },
  });
}

const PARSERS: Readonly<Record<string, (rest: string, text: string) => Address>> = {
  unix: parseUnix,
  tcp: parseTcp,
  vsock: parseVsock,
};

/**
 * Parses an address. An IPv6 host is written in brackets; TCP port 0 lets the system choose one to listen on.
 *
 * @throws KvmiError with code E_ADDRESS.
 */
export function parseAddress(text: string): Address {
  const colon = text.indexOf(':');
  const scheme = text.slice(0, Math.max(0, colon));
  const parse = PARSERS[scheme];
  if (parse) return parse(text.slice(colon + 1), text);
  if (text.includes('/')) throw addressError(text, 'it does not start with unix:', `Write unix:${text}.`);
  throw addressError(text, 'it starts neither with unix: nor tcp: nor vsock:');
}

/** The reverse of {@link parseAddress}. */
export function formatAddress(address: Address): string {
  switch (address.kind) {
    case 'unix':
      return `unix:${address.path}`;
    case 'tcp':
      return `tcp:${isIPv6(address.host) ? `[${address.host}]` : address.host}:${address.port}`;
    case 'vsock':
      return `vsock:${address.cid}:${address.port}`;
  }
}

function parseUnix(path: string, text: string): Address {
  if (path === '') throw addressError(text, 'the path is empty');
  if (path.includes('\0')) throw addressError(text, 'the path has a NUL byte');
  return { kind: 'unix', path };
}

function parseTcp(rest: string, text: string): Address {
  const match = /^(?:\[([^\]]+)\]|([^:]+)):(\d+)$/.exec(rest);
  if (!match) throw addressError(text, 'HOST:PORT is expected after tcp:');
  const [, bracketed, plain, port] = match;
  if (bracketed !== undefined && !isIPv6(bracketed)) {
    throw addressError(text, `${bracketed} is not an IPv6 address`);
  }
  return { kind: 'tcp', host: (bracketed ?? plain)!, port: parseNumber(port!, 65535, 'port', text) };
}

function parseVsock(rest: string, text: string): Address {
  const match = /^(\d+):(\d+)$/.exec(rest);
  if (!match) throw addressError(text, 'CID:PORT, both numbers, is expected after vsock:');
  const cid = parseNumber(match[1]!, 0xffffffff, 'CID', text);
  return { kind: 'vsock', cid, port: parseNumber(match[2]!, 0xffffffff, 'port', text) };
}

function parseNumber(digits: string, limit: number, what: string, text: string): number {
  const value = Number(digits);
  if (value > limit) throw addressError(text, `${what} ${digits} is above ${limit}`);
  return value;
}

import { UsageError } from '../error.ts';

const SUFFIXES: Readonly<Record<string, bigint>> = { k: 1n << 10n, m: 1n << 20n, g: 1n << 30n, t: 1n << 40n };
const NUMBER = /^(0x[0-9a-f]+|\d+)(?:([kmgt])(?:i?b)?)?$/i;

/** A number as people write it: decimal, `0x…`, with K, M, G or T for powers of 1024. Undefined when it is none. */
export function parseNumber(text: string): bigint | undefined {
  const match = NUMBER.exec(text.trim());
  if (!match) return undefined;
  return BigInt(match[1]!) * (SUFFIXES[match[2]?.toLowerCase() ?? ''] ?? 1n);
}

/** Parses an argument or the value of an option; throws a UsageError that says what is expected. */
export type Parse<T> = (text: string) => T;

/** A count between `least` and `most`. */
export function integer(what: string, least = 0, most = Number.MAX_SAFE_INTEGER): Parse<number> {
  return (text) => {
    const value = parseNumber(text);
    if (value === undefined) throw new UsageError(`${what}: ${quoted(text)} is no number`);
    if (value < least || value > most) {
      throw new UsageError(`${what}: ${text} is not between ${least} and ${most}`);
    }
    return Number(value);
  };
}

const ADDRESS_LIMIT = 1n << 64n;

/** An address of at most 64 bits. */
export const address: Parse<bigint> = (text) => {
  const value = parseNumber(text);
  if (value === undefined) {
    throw new UsageError(
      `address ${quoted(text)} is no number`,
      'Write it in hexadecimal (0xffffffff81000000), in decimal, or as a symbol of the kernel.',
    );
  }
  if (value >= ADDRESS_LIMIT) throw new UsageError(`address ${text} has more than 64 bits`);
  return value;
};

/** An address, or a symbol of the guest's kernel with an offset. */
export interface Place {
  readonly symbol: string | undefined;
  /** The address itself when there is no symbol. */
  readonly offset: bigint;
}

const SYMBOL = /^([A-Za-z_.$][\w.$]*)(?:\+(0x[0-9a-f]+|\d+))?$/i;

/** `0xffffffff81000000`, `do_sys_openat2` or `do_sys_openat2+0x10`. */
export const place: Parse<Place> = (text) => {
  const [, symbol, offset] = SYMBOL.exec(text) ?? [];
  if (symbol !== undefined) return { symbol, offset: offset === undefined ? 0n : address(offset) };
  return { symbol: undefined, offset: address(text) };
};

/** A pattern of names as shells have it: `do_sys_*`. */
export interface Glob {
  readonly pattern: RegExp;
}

/** A {@link place}, or a pattern of the names of symbols with `*` and `?`. */
export const placeOrGlob: Parse<Place | Glob> = (text) => {
  if (!/^[\w.$*?]*[*?][\w.$*?]*$/.test(text)) return place(text);
  const source = text
    .replaceAll('.', '\\.')
    .replaceAll('$', '\\$')
    .replaceAll(/\*+/g, '.*')
    .replaceAll('?', '.');
  return { pattern: new RegExp(`^${source}$`) };
};

/** Seconds, with decimals, as milliseconds. */
export function seconds(what: string): Parse<number> {
  return (text) => {
    const value = /^\d+(?:\.\d+)?$/.test(text) ? Number(text) : Number.NaN;
    if (!(value > 0) || value > 2_000_000) {
      throw new UsageError(`${what}: ${quoted(text)} is no number of seconds above 0`);
    }
    return value * 1000;
  };
}

/** One of a few words. */
export function oneOf<T extends string>(what: string, words: readonly T[]): Parse<T> {
  return (text) => {
    const found = words.find((word) => word === text);
    if (found) return found;
    throw new UsageError(`${what}: ${quoted(text)} is none of ${words.join(', ')}`);
  };
}

/** Hexadecimal digits, two a byte, with spaces or colons between bytes if you like. */
export const hexBytes: Parse<Uint8Array> = (text) => {
  const digits = text.replace(/^0x/i, '').replace(/[\s:_]/g, '');
  if (!/^(?:[0-9a-f]{2})+$/i.test(digits)) {
    throw new UsageError(`${quoted(text)} is no row of hexadecimal bytes`, "Write 90cc or '90 cc'.");
  }
  return new Uint8Array(Buffer.from(digits, 'hex'));
};

/** Parts between commas, without empty ones. */
export const commaList: Parse<string[]> = (text) =>
  text
    .split(',')
    .map((part) => part.trim())
    .filter((part) => part !== '');

export const text: Parse<string> = (value) => value;

function quoted(text: string): string {
  return JSON.stringify(text);
}

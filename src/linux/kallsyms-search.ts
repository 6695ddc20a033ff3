import { getU16, getU32, getU64 } from '../abi/bytes.ts';
import { addressFormOf, type KallsymsTables, MAX_SYMBOLS } from './kallsyms.ts';

/*
 * Finding the tables of scripts/kallsyms.c in a copy of the kernel's image, by what they must look like. The token
 * table always holds the ten digits as tokens of their own, in order; token_index follows it and must agree with it
 * in all 256 places; markers and names come before it.
 */

const DIGITS = Buffer.from('0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00', 'latin1');
const MAX_TOKEN = 64;
const TOKENS = 256;
/** The longest token table that is looked for, and how much a search must overlap. */
export const MAX_TOKEN_TABLE = TOKENS * MAX_TOKEN + 1024;
/** Names of 256 symbols take at least and at most this many bytes. */
const MIN_STEP = 256 * 2;
const MAX_STEP = 256 * 520;
/** What lies between the markers and the token table: 3 bytes a symbol. */
const MAX_SEQUENCES = 12 << 20;

/** Places in a buffer. */
export interface TokenTable {
  readonly table: number;
  readonly index: number;
}

/** Token tables in `bytes` of which the digits are wholly there. */
export function* findTokenTables(bytes: Buffer): IterableIterator<TokenTable> {
  for (let at = bytes.indexOf(DIGITS); at >= 0; at = bytes.indexOf(DIGITS, at + 1)) {
    const found = tokenTableAround(bytes, at);
    if (found !== undefined) yield found;
  }
}

function tokenTableAround(bytes: Buffer, digits: number): TokenTable | undefined {
  let end = digits;
  for (let token = 0x30; token < TOKENS; token++) {
    const stop = bytes.indexOf(0, end);
    if (stop < 0 || stop - end > MAX_TOKEN) return undefined;
    end = stop + 1;
  }
  // ALGN is 8 in most versions; 4 and none were seen, too.
  for (const alignment of [8, 4, 2]) {
    const index = Math.ceil(end / alignment) * alignment;
    if (index + 2 * TOKENS > bytes.length || getU16(bytes, index) !== 0) continue;
    const table = digits - getU16(bytes, index + 2 * 0x30);
    if (table >= 0 && agrees(bytes, table, index)) return { table, index };
  }
  return undefined;
}

function agrees(bytes: Buffer, table: number, index: number): boolean {
  let at = table;
  for (let token = 0; token < TOKENS; token++) {
    if (getU16(bytes, index + 2 * token) !== at - table) return false;
    const stop = bytes.indexOf(0, at);
    if (stop < 0 || stop >= index) return false;
    at = stop + 1;
  }
  return true;
}

interface Names {
  readonly names: number;
  /** Where num_syms starts. */
  readonly count: number;
  readonly symbols: number;
}

/**
 * The rest of the tables around a token table. `address` is that of `bytes`: for a table with place-relative entries it
 * decides what the addresses are. Undefined when they are not there.
 */
export function tablesAround(bytes: Buffer, at: TokenTable, address: bigint): KallsymsTables | undefined {
  const found = findNames(bytes, at.table);
  if (found === undefined) return undefined;
  const names = bytes.subarray(found.names, at.table);
  const common = {
    count: found.symbols,
    namesAddress: address + BigInt(found.names),
    names,
    tokenTable: bytes.subarray(at.table, at.index),
    tokenIndex: bytes.subarray(at.index, at.index + 2 * TOKENS),
  };
  for (const { offsets, size, base } of offsetPlaces(found, at.index)) {
    if (offsets < 0 || offsets + size > bytes.length) continue;
    if (base !== undefined && (base < 0 || base + 8 > bytes.length)) continue;
    const relativeBase = base === undefined ? undefined : getU64(bytes, base);
    if (relativeBase !== undefined && relativeBase < KERNEL_HALF) continue;
    const tables: KallsymsTables = {
      ...common,
      offsets: bytes.subarray(offsets, offsets + size),
      offsetsAddress: address + BigInt(offsets),
      relativeBase,
    };
    if (addressFormOf(tables) !== undefined) return tables;
  }
  return undefined;
}

const KERNEL_HALF = 0xffff_8000_0000_0000n;

/** Where the addresses may be, most likely first: before the names until 6.3, behind the tokens since 6.4. */
function* offsetPlaces({ count, symbols }: Names, index: number) {
  const base = down8(count - 8);
  yield { offsets: down8(base - 4 * symbols), size: 4 * symbols, base };
  const offsets = up8(index + 2 * TOKENS);
  yield { offsets, size: 4 * symbols, base: up8(offsets + 4 * symbols) };
  yield { offsets: count - 8 * symbols, size: 8 * symbols, base: undefined };
  yield { offsets, size: 4 * symbols, base: undefined };
}

function down8(at: number): number {
  return at - (at & 7);
}

function up8(at: number): number {
  return down8(at + 7);
}

/** Memory made to look like markers everywhere must not cost a search of names everywhere. */
const MAX_MARKER_CANDIDATES = 64;

/** Looks back from the token table for markers: u32, or u64 before 4.20. */
function findNames(bytes: Buffer, tokenTable: number): Names | undefined {
  const lowest = Math.max(0, tokenTable - MAX_SEQUENCES);
  let candidates = 0;
  for (let at = (tokenTable & ~3) - 12; at >= lowest; at -= 4) {
    if (getU32(bytes, at) !== 0) continue;
    for (const stride of [4, 8]) {
      const markers = markersAt(bytes, at, stride, tokenTable);
      if (markers === undefined) continue;
      if (++candidates > MAX_MARKER_CANDIDATES) return undefined;
      const names = namesBefore(bytes, at, markers);
      if (names !== undefined) return names;
    }
  }
  return undefined;
}

function markersAt(bytes: Buffer, at: number, stride: number, end: number): number[] | undefined {
  const markers = [0];
  for (let next = at + stride; next + stride <= end; next += stride) {
    const value = getU32(bytes, next);
    const step = value - markers[markers.length - 1]!;
    if (step < MIN_STEP || step > MAX_STEP) break;
    if (stride === 8 && getU32(bytes, next + 4) !== 0) break;
    markers.push(value);
    if (markers.length > MAX_SYMBOLS / 256) return undefined;
  }
  return markers.length >= 3 ? markers : undefined;
}

/** The names that end before `markersStart`, with the number of symbols before them. */
function namesBefore(bytes: Buffer, markersStart: number, markers: readonly number[]): Names | undefined {
  // What follows the markers may look like one or two more of them.
  for (let length = markers.length; length >= Math.max(2, markers.length - 2); length--) {
    const highest = markersStart - markers[length - 1]!;
    const lowest = Math.max(8, highest - MAX_STEP);
    for (let names = highest - (highest & 3); names >= lowest; names -= 4) {
      for (const distance of [8, 4]) {
        const symbols = getU32(bytes, names - distance);
        if (symbols <= 256 * (length - 1) || symbols > 256 * length) continue;
        if (agreesWithMarkers(bytes, names, markers, length, symbols))
          return { names, count: names - distance, symbols };
      }
    }
  }
  return undefined;
}

function agreesWithMarkers(
  bytes: Buffer,
  names: number,
  markers: readonly number[],
  length: number,
  symbols: number,
): boolean {
  let at = names;
  for (let i = 0; i < symbols; i++) {
    if ((i & 255) === 0 && (i >> 8 >= length || at - names !== markers[i >> 8])) return false;
    let size = bytes[at++]!;
    if ((size & 0x80) !== 0) size = (size & 0x7f) | (bytes[at++]! << 7);
    if (size === 0) return false;
    at += size;
    if (at > bytes.length) return false;
  }
  return true;
}

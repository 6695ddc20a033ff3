import { getS32, getU16, getU32, getU64 } from '../abi/bytes.ts';
import { KvmiError } from '../error.ts';
import type { Gva } from '../machine/index.ts';
import { SymbolTable } from './symbols.ts';

/**
 * How addresses are stored (kernel/kallsyms.c, kallsyms_sym_address).
 *
 * | form | entry | address |
 * |---|---|---|
 * | absolute-percpu | s32 | the entry when positive (a per-CPU offset), else base - 1 - entry; 4.6 to 6.14 with SMP |
 * | relative | u32 | base + entry |
 * | place-relative | s32 | where the entry is, plus the entry; the newest kernels |
 * | absolute | u64 | the entry; before 4.6 |
 */
export type AddressForm = 'absolute-percpu' | 'relative' | 'place-relative' | 'absolute';

/** The tables of scripts/kallsyms.c, as bytes. */
export interface KallsymsTables {
  readonly count: number;
  /** Starts with the first name; what follows the last one does not matter. */
  readonly names: Uint8Array;
  readonly tokenTable: Uint8Array;
  /** 256 times u16. */
  readonly tokenIndex: Uint8Array;
  /** kallsyms_offsets or kallsyms_addresses. */
  readonly offsets: Uint8Array;
  /** The address of `offsets`. */
  readonly offsetsAddress: Gva;
  /** kallsyms_relative_base; undefined where there is none. */
  readonly relativeBase: bigint | undefined;
  /** The address of `names`. */
  readonly namesAddress: Gva;
}

/** Far above any kernel: 6.12 has 155 thousand. */
export const MAX_SYMBOLS = 4_000_000;
const MAX_TEXT = 128 << 20;
const MAX_NAME = 1024;
const MAX_TOKEN = 64;

/** Expands the compressed names and computes the addresses. Throws a KvmiError with code E_KALLSYMS when they make no sense. */
export function decodeKallsyms(tables: KallsymsTables): SymbolTable {
  const addresses = decodeAddresses(tables);
  return SymbolTable.of({ ...decodeNames(tables), addresses });
}

function invalid(what: string): KvmiError {
  return new KvmiError('E_KALLSYMS', `the kernel's symbol table: ${what}`, {
    hint: 'The tables are damaged or in a layout that is not known. Give a vmlinux file or an ISF file.',
  });
}

/** The 256 tokens, one after the other, and where each starts. */
function tokensOf(table: Uint8Array, index: Uint8Array): { text: Uint8Array; starts: Uint16Array } {
  const text = new Uint8Array(256 * MAX_TOKEN);
  const starts = new Uint16Array(257);
  let used = 0;
  for (let token = 0; token < 256; token++) {
    const start = getU16(index, 2 * token);
    for (let i = start; i < start + MAX_TOKEN && i < table.length && table[i] !== 0; i++)
      text[used++] = table[i]!;
    starts[token + 1] = used;
  }
  return { text, starts };
}

function decodeNames({ count, names, tokenTable, tokenIndex }: KallsymsTables) {
  if (count < 1 || count > MAX_SYMBOLS) throw invalid(`${count} symbols`);
  if (tokenIndex.length < 512) throw invalid('the token index is cut off');
  const tokens = tokensOf(tokenTable, tokenIndex);
  let text = new Uint8Array(Math.max(1 << 16, count * 32));
  const starts = new Uint32Array(count + 1);
  const types = new Uint8Array(count);
  let used = 0;
  let at = 0;
  for (let i = 0; i < count; i++) {
    if (used + MAX_NAME + MAX_TOKEN > text.length) text = grown(text);
    let length = names[at++]!;
    if ((length & 0x80) !== 0) length = (length & 0x7f) | (names[at++]! << 7);
    const end = at + length;
    if (!(end <= names.length)) throw invalid(`the name of symbol ${i} of ${count} lies outside the table`);
    // The first character is the type. It is written like the rest and then overwritten by what follows it.
    const limit = used + MAX_NAME;
    let out = used;
    for (; at < end && out < limit; at++) {
      const token = names[at]!;
      const tokenEnd = tokens.starts[token + 1]!;
      for (let k = tokens.starts[token]!; k < tokenEnd; k++) text[out++] = tokens.text[k]!;
    }
    at = end;
    if (out === used) throw invalid(`symbol ${i} of ${count} has no type`);
    types[i] = text[used]!;
    text.copyWithin(used, used + 1, out);
    used = out - 1;
    starts[i + 1] = used;
  }
  return { text: text.slice(0, used), starts, types };
}

function grown(text: Uint8Array<ArrayBuffer>): Uint8Array<ArrayBuffer> {
  if (text.length * 2 > MAX_TEXT) throw invalid(`names of more than ${MAX_TEXT} bytes`);
  const more = new Uint8Array(text.length * 2);
  more.set(text);
  return more;
}

type Decoder = (tables: KallsymsTables, index: number, base: bigint) => bigint;

const DECODERS: Readonly<Record<AddressForm, Decoder>> = {
  'absolute-percpu': ({ offsets }, index, base) => {
    const entry = getS32(offsets, 4 * index);
    return entry >= 0 ? BigInt(entry) : base - 1n - BigInt(entry);
  },
  relative: ({ offsets }, index, base) => base + BigInt(getU32(offsets, 4 * index)),
  'place-relative': ({ offsets, offsetsAddress }, index) =>
    offsetsAddress + BigInt(4 * index + getS32(offsets, 4 * index)),
  absolute: ({ offsets }, index) => getU64(offsets, 8 * index),
};

const SAMPLES = 2048;

/**
 * The form in which the table is sorted by address, which kallsyms is; undefined when there is none. A table without
 * a base is absolute or place-relative.
 */
export function addressFormOf(tables: KallsymsTables): AddressForm | undefined {
  const { count, offsets, relativeBase } = tables;
  const forms: AddressForm[] = [];
  if (offsets.length >= 4 * count) {
    // Most symbols are in the image: in the middle of the table the sign of an entry tells the two apart.
    if (relativeBase === undefined) forms.push('place-relative');
    else forms.push(getS32(offsets, 4 * (count >>> 1)) < 0 ? 'absolute-percpu' : 'relative');
  }
  if (relativeBase === undefined && offsets.length >= 8 * count) forms.push('absolute');
  return forms.find((form) => isSorted(tables, form));
}

function isSorted(tables: KallsymsTables, form: AddressForm): boolean {
  const base = tables.relativeBase ?? 0n;
  const step = Math.max(1, Math.floor(tables.count / SAMPLES));
  let previous = 0n;
  let first = -1n;
  for (let i = 0; i < tables.count; i += step) {
    const address = BigInt.asUintN(64, DECODERS[form](tables, i, base));
    if (address < previous) return false;
    if (first < 0n) first = address;
    previous = address;
  }
  // All addresses being the same is what zeros decode to.
  return tables.count < 2 || previous > first;
}

function decodeAddresses(tables: KallsymsTables): BigUint64Array {
  const form = addressFormOf(tables);
  if (form === undefined) throw invalid('the addresses are in no known form');
  const { count, offsets } = tables;
  const base = tables.relativeBase ?? 0n;
  const addresses = new BigUint64Array(count);
  if (form !== 'absolute-percpu' && form !== 'relative') {
    for (let i = 0; i < count; i++) addresses[i] = DECODERS[form](tables, i, base);
    return addresses;
  }
  // The usual forms without a bigint for each symbol: sums of halves, with the carry.
  const halves = new Uint32Array(addresses.buffer);
  const low = Number(base & 0xffffffffn);
  const high = Number((base >> 32n) & 0xffffffffn);
  for (let i = 0; i < count; i++) {
    const entry = getS32(offsets, 4 * i);
    if (form === 'absolute-percpu' && entry >= 0) {
      halves[2 * i] = entry;
      continue;
    }
    const sum = low + (form === 'relative' ? entry >>> 0 : -1 - entry);
    halves[2 * i] = sum;
    halves[2 * i + 1] = high + (sum > 0xffffffff ? 1 : 0);
  }
  return addresses;
}

import type { AddressForm } from '../../src/linux/kallsyms.ts';

/** The order of the tables in the kernel's image. */
export type KallsymsOrder =
  /** Until 6.3: addresses first; markers of 8 bytes before 4.20, `seqs_of_names` since 6.2. */
  | 'addresses-first'
  /** Since 6.4: addresses behind the token index. */
  | 'addresses-last';

export interface KallsymsOptions {
  readonly order: KallsymsOrder;
  readonly form: AddressForm;
  readonly markerSize: 4 | 8;
  readonly sequences: boolean;
  /** Address of the image. */
  readonly address: bigint;
  /** Bytes of other things in front. */
  readonly before?: number;
}

export interface SymbolLine {
  readonly name: string;
  readonly type: string;
  readonly address: bigint;
}

/** Where the tables came to lie, as offsets in `bytes`. */
export interface KallsymsImage {
  readonly bytes: Buffer;
  readonly names: number;
  readonly count: number;
  readonly tokenTable: number;
  readonly tokenIndex: number;
  readonly offsets: number;
  readonly base: number | undefined;
}

/** Tokens of more than one character; all others stand for themselves. */
const LONG_TOKENS: Readonly<Record<number, string>> = {
  1: '__',
  2: 'sys_',
  3: 'init',
  4: '_x64_',
  128: 'per',
  254: 'lock',
};

function tokens(): string[] {
  return Array.from(
    { length: 256 },
    (_, i) => LONG_TOKENS[i] ?? (i >= 0x21 && i < 0x7f ? String.fromCharCode(i) : `?${i}`),
  );
}

function compress(text: string): Buffer {
  const out: number[] = [];
  for (let at = 0; at < text.length; ) {
    // The first character is the type, which no token may swallow.
    const long =
      at === 0 ? undefined : Object.entries(LONG_TOKENS).find(([, token]) => text.startsWith(token, at));
    out.push(long === undefined ? text.charCodeAt(at) : Number(long[0]));
    at += long === undefined ? 1 : long[1].length;
  }
  const length = out.length < 0x80 ? [out.length] : [(out.length & 0x7f) | 0x80, out.length >> 7];
  return Buffer.from([...length, ...out]);
}

/** The tables of scripts/kallsyms.c for `symbols`, which must be in order of their addresses. */
export function kallsymsImage(symbols: readonly SymbolLine[], options: KallsymsOptions): KallsymsImage {
  const parts: Buffer[] = [Buffer.alloc(options.before ?? 64, 0x5a)];
  let used = parts[0]!.length;
  const put = (bytes: Buffer, alignment = 8): number => {
    const padding = (alignment - (used % alignment)) % alignment;
    parts.push(Buffer.alloc(padding), bytes);
    used += padding + bytes.length;
    return used - bytes.length;
  };
  const base = symbols.find(({ address }) => address >= 0xffff_8000_0000_0000n)?.address ?? 0n;
  const hasBase = options.form === 'absolute-percpu' || options.form === 'relative';
  const putAddresses = () => {
    const width = options.form === 'absolute' ? 8 : 4;
    const at = used + ((8 - (used % 8)) % 8);
    const bytes = Buffer.alloc(symbols.length * width);
    symbols.forEach(({ address }, i) => {
      const place = options.address + BigInt(at + 4 * i);
      if (options.form === 'absolute') bytes.writeBigUInt64LE(address, 8 * i);
      else if (options.form === 'relative') bytes.writeUInt32LE(Number(address - base), 4 * i);
      else if (options.form === 'place-relative')
        bytes.writeInt32LE(Number(BigInt.asIntN(64, address - place)), 4 * i);
      else bytes.writeInt32LE(address < base ? Number(address) : Number(base - 1n - address), 4 * i);
    });
    const offsets = put(bytes);
    const baseBytes = Buffer.alloc(8);
    baseBytes.writeBigUInt64LE(base);
    return { offsets, base: hasBase ? put(baseBytes) : undefined };
  };
  const first = options.order === 'addresses-first' ? putAddresses() : undefined;
  const number = Buffer.alloc(options.markerSize);
  number.writeUInt32LE(symbols.length);
  const count = put(number);
  const { names, markers } = namesAndMarkers(symbols, options.markerSize);
  const namesAt = put(names);
  put(markers);
  if (options.sequences && options.order === 'addresses-first') put(Buffer.alloc(symbols.length * 3, 0x7f));
  const { table, index } = tokenTables();
  const tokenTable = put(table);
  const tokenIndex = put(index);
  const places = first ?? putAddresses();
  if (options.sequences && options.order === 'addresses-last') put(Buffer.alloc(symbols.length * 3, 0x7f));
  put(Buffer.alloc(4096, 0x5a));
  return { bytes: Buffer.concat(parts), names: namesAt, count, tokenTable, tokenIndex, ...places };
}

function namesAndMarkers(symbols: readonly SymbolLine[], markerSize: 4 | 8) {
  const names: Buffer[] = [];
  const markers = Buffer.alloc(Math.ceil(symbols.length / 256) * markerSize);
  let size = 0;
  symbols.forEach(({ name, type }, i) => {
    if (i % 256 === 0) markers.writeUInt32LE(size, (i / 256) * markerSize);
    const bytes = compress(type + name);
    names.push(bytes);
    size += bytes.length;
  });
  return { names: Buffer.concat(names), markers };
}

function tokenTables() {
  const index = Buffer.alloc(512);
  const texts: Buffer[] = [];
  let at = 0;
  tokens().forEach((token, i) => {
    index.writeUInt16LE(at, 2 * i);
    texts.push(Buffer.from(`${token}\0`, 'latin1'));
    at += token.length + 1;
  });
  return { table: Buffer.concat(texts), index };
}

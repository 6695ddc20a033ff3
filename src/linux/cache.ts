import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { crc32 } from 'node:zlib';
import type { Gva, PhysicalMemory } from '../machine/index.ts';
import { type Walk, wait } from '../reading/walk.ts';
import { keepFile } from './keep-file.ts';
import { LAYOUT, type StructLayout } from './layout.ts';
import { SymbolTable } from './symbols.ts';

/*
 * What was decoded from a kernel is kept in a file named after its build id. It is used again only when the parts of
 * guest memory that it was made from still have the same digests: a guest that claims another kernel's build id gets
 * nothing wrong out of the cache, and puts nothing wrong into it.
 */

/** A part of the kernel's image that something was decoded from. */
export interface Source {
  readonly address: Gva;
  readonly size: number;
}

/** What is kept. Addresses are as if KASLR had not moved the kernel. */
export interface CachedKernel {
  readonly symbols: SymbolTable;
  readonly layouts: readonly StructLayout[];
  readonly banner: string;
}

/** Where the running kernel is. */
export interface CachePlace {
  readonly memory: PhysicalMemory;
  /** Guest-physical minus virtual address of the image, which is in one piece. */
  readonly imageDelta: bigint;
  readonly kernelOffset: bigint;
}

interface Header {
  readonly format: number;
  readonly layout: string;
  readonly banner: string;
  readonly sources: readonly { readonly address: string; readonly size: number; readonly digest: string }[];
  readonly layouts: readonly StructLayout[];
  /** Lengths in bytes of the arrays, in the order of {@link ARRAYS}. */
  readonly lengths: readonly number[];
}

const FORMAT = 2;
const MAGIC = Buffer.from('kvmi-linux-cache\n');
const CHECKSUM = 4;
const MAX_SOURCE = 64 << 20;
const IMAGE_MAP = 0xffff_ffff_8000_0000n;
const IMAGE_MAP_END = 0xffff_ffff_c000_0000n;

/** Changes with the table of structures, so that a cache of an older kvmi is not used. */
const LAYOUT_DIGEST = createHash('sha256').update(JSON.stringify(LAYOUT)).digest('hex').slice(0, 16);

/** `$XDG_CACHE_HOME/kvmi/linux`, by default below `~/.cache`. */
export function defaultCacheDirectory(): string {
  const base = process.env.XDG_CACHE_HOME;
  return join(base?.startsWith('/') ? base : join(homedir(), '.cache'), 'kvmi', 'linux');
}

function fileFor(directory: string, key: string): string {
  const name = /^[0-9a-f]+$/.test(key) ? key : createHash('sha256').update(key).digest('hex').slice(0, 40);
  return join(directory, `${name}.kernel`);
}

/** What was kept for the kernel called `key`; undefined when there is nothing, or nothing that can be used. */
export function* loadCached(
  directory: string,
  key: string,
  place: CachePlace,
): Walk<CachedKernel | undefined> {
  const file = readFile(fileFor(directory, key));
  const parsed = file && parse(file);
  if (parsed === undefined) return undefined;
  const { header, arrays } = parsed;
  for (const source of header.sources) {
    const bytes = yield* readSource(place, BigInt(source.address) + place.kernelOffset, source.size);
    if (bytes === undefined || digestOf(bytes) !== source.digest) return undefined;
  }
  moveImage(arrays.addresses, place.kernelOffset);
  return { symbols: new SymbolTable(arrays), layouts: header.layouts, banner: header.banner };
}

function readFile(path: string): Buffer | undefined {
  try {
    const file = readFileSync(path);
    // Small files share an ArrayBuffer, in which nothing is aligned.
    return file.byteOffset === 0 ? file : Buffer.from(Uint8Array.from(file).buffer);
  } catch {
    return undefined;
  }
}

function* readSource(place: CachePlace, address: Gva, size: number): Walk<Buffer | undefined> {
  if (!(size > 0 && size <= MAX_SOURCE)) return undefined;
  const into = Buffer.allocUnsafeSlow(size);
  return (yield* wait(place.memory.read(Number(address + place.imageDelta), into))) ? into : undefined;
}

/** BLAKE2b: the guest must not be able to make two sources with one digest. */
function digestOf(bytes: Uint8Array): string {
  return createHash('blake2b512').update(bytes).digest('hex').slice(0, 64);
}

/** Against damage only: who can write the file could as well change kvmi. */
function checksumOf(bytes: Uint8Array): Buffer {
  const checksum = Buffer.alloc(CHECKSUM);
  checksum.writeUInt32LE(crc32(bytes));
  return checksum;
}

/** Adds to all addresses in the image; per-CPU symbols and the like stay. */
function moveImage(addresses: BigUint64Array, by: bigint): void {
  const halves = new Uint32Array(addresses.buffer, addresses.byteOffset, addresses.length * 2);
  const low = Number(by & 0xffffffffn);
  for (let i = 0; i < halves.length; i += 2)
    if (halves[i + 1] === 0xffffffff && halves[i]! >= 0x80000000) halves[i] = halves[i]! + low;
}

/** Keeps a kernel. Answers whether that worked: a cache that cannot be written is no error. */
export function* storeCached(
  directory: string,
  key: string,
  place: CachePlace,
  kernel: CachedKernel,
  sources: readonly Source[],
): Walk<boolean> {
  const kept: { address: string; size: number; digest: string }[] = [];
  for (const { address, size } of sources) {
    const bytes = yield* readSource(place, address, size);
    if (bytes === undefined || address < IMAGE_MAP || address >= IMAGE_MAP_END) return false;
    kept.push({ address: String(address - place.kernelOffset), size, digest: digestOf(bytes) });
  }
  return keepFile(directory, fileFor(directory, key), serialize(kernel, kept, place.kernelOffset));
}

function serialize(kernel: CachedKernel, sources: Header['sources'], kernelOffset: bigint): Buffer {
  const { text, starts, types, addresses, slots } = kernel.symbols.arrays;
  const unmoved = addresses.slice();
  moveImage(unmoved, -kernelOffset);
  // The widest first: each array is aligned where it lies.
  const arrays = [unmoved, starts, slots, types, text].map((array) =>
    Buffer.from(array.buffer, array.byteOffset, array.byteLength),
  );
  const header: Header = {
    format: FORMAT,
    layout: LAYOUT_DIGEST,
    banner: kernel.banner,
    sources,
    layouts: kernel.layouts,
    lengths: arrays.map((array) => array.length),
  };
  const json = Buffer.from(JSON.stringify(header));
  const size = Buffer.alloc(4);
  size.writeUInt32LE(json.length);
  const head = Buffer.alloc(aligned(HEADER_AT + json.length) - HEADER_AT, ' ');
  json.copy(head);
  const content = Buffer.concat([size, head, ...arrays]);
  return Buffer.concat([MAGIC, checksumOf(content), content]);
}

/** Where the header starts: behind magic, checksum and its own size. */
const HEADER_AT = MAGIC.length + CHECKSUM + 4;

function aligned(offset: number): number {
  return Math.ceil(offset / 8) * 8;
}

/** `file` must have an ArrayBuffer of its own: the arrays are views of it. */
function parse(file: Buffer) {
  if (file.length < HEADER_AT || !file.subarray(0, MAGIC.length).equals(MAGIC)) return undefined;
  const content = file.subarray(MAGIC.length + CHECKSUM);
  if (!checksumOf(content).equals(file.subarray(MAGIC.length, MAGIC.length + CHECKSUM))) return undefined;
  const size = content.readUInt32LE(0);
  const header = JSON.parse(file.toString('utf8', HEADER_AT, HEADER_AT + size)) as Header;
  if (header.format !== FORMAT || header.layout !== LAYOUT_DIGEST) return undefined;
  const [addresses, starts, slots, types, text] = header.lengths;
  let at = aligned(HEADER_AT + size);
  const next = (length: number | undefined): [ArrayBuffer, number] => {
    const start = file.byteOffset + at;
    at += length ?? 0;
    return [file.buffer as ArrayBuffer, start];
  };
  const arrays = {
    addresses: new BigUint64Array(...next(addresses), addresses! / 8),
    starts: new Uint32Array(...next(starts), starts! / 4),
    slots: new Int32Array(...next(slots), slots! / 4),
    types: new Uint8Array(...next(types), types),
    text: new Uint8Array(...next(text), text),
  };
  return { header, arrays };
}

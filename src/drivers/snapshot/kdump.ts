import { inflateSync } from 'node:zlib';
import { type BackedRegion, PAGE_SIZE, type RegionBackend } from '../../machine/index.ts';
import { type DumpContents, damaged, MAX_SEGMENTS } from './contents.ts';
import { readNotes, statesOf, vmcoreinfoOf } from './elf.ts';
import { readPart, type Source } from './file.ts';
import { unpackLzo } from './lzo.ts';
import { unpackSnappy } from './snappy.ts';
import { loadZstd } from './zstd.ts';

/*
 * The kdump-compressed format of makedumpfile and of QEMU's dump-guest-memory -z: a bitmap of the pages that exist,
 * one of those that were dumped, and for each of the latter a descriptor of its compressed bytes.
 */

export const KDUMP_MAGIC = Buffer.from('KDUMP   ', 'latin1');
const DESCRIPTOR = 24;
/** Enough for 4 TiB of guest memory. */
const MAX_BITMAP = 2 ** 27;
/** Where the fields lie in the header (struct disk_dump_header) and in the block behind it (kdump_sub_header). */
const AT = { block: 428, sub: 432, bitmap: 436, pages: 440 } as const;
const SUB = { vmcoreinfo: 32, vmcoreinfoSize: 40, note: 48, noteSize: 56, maxPages: 96 } as const;

export function readKdump(source: Source): DumpContents {
  const header = readPart(source, 0, 464);
  if (header === undefined) throw damaged('the kdump header is cut off');
  const block = header.readInt32LE(AT.block);
  const subBlocks = header.readInt32LE(AT.sub);
  const bitmapBlocks = header.readUInt32LE(AT.bitmap);
  if (block !== PAGE_SIZE || subBlocks < 1 || subBlocks > 4096) throw damaged(`blocks of ${block} bytes`);
  const sub = readPart(source, block, 112);
  if (sub === undefined) throw damaged('the kdump sub-header is cut off');
  const bitmapSize = (bitmapBlocks * block) / 2;
  const bitmapAt = (1 + subBlocks) * block;
  const maxPages = Math.min(
    Number(sub.readBigUInt64LE(SUB.maxPages)) || header.readUInt32LE(AT.pages),
    bitmapSize * 8,
  );
  const exists = readPart(source, bitmapAt, bitmapSize, MAX_BITMAP);
  const dumped = readPart(source, bitmapAt + bitmapSize, bitmapSize, MAX_BITMAP);
  if (exists === undefined || dumped === undefined) throw damaged('the bitmaps of pages are cut off');
  const pages = new DumpedPages(source, dumped, bitmapAt + 2 * bitmapSize);
  const notes = readNotes(
    source,
    Number(sub.readBigUInt64LE(SUB.note)),
    Number(sub.readBigUInt64LE(SUB.noteSize)),
  );
  const at = Number(sub.readBigUInt64LE(SUB.vmcoreinfo));
  const size = Number(sub.readBigUInt64LE(SUB.vmcoreinfoSize));
  const text = size > 0 ? readPart(source, at, size) : undefined;
  return {
    format: 'kdump',
    regions: regionsIn(exists, maxPages, pages),
    states: statesOf(notes),
    vmcoreinfo: text?.toString('latin1') ?? vmcoreinfoOf(notes),
    missing: 0,
  };
}

function isSet(bitmap: Uint8Array, page: number): boolean {
  return (bitmap[Math.floor(page / 8)]! & (1 << (page & 7))) !== 0;
}

function regionsIn(exists: Uint8Array, maxPages: number, pages: DumpedPages): BackedRegion[] {
  const regions: BackedRegion[] = [];
  for (const [first, end] of runsIn(exists, maxPages)) {
    if (regions.length === MAX_SEGMENTS) throw damaged(`more than ${MAX_SEGMENTS} runs of pages`);
    regions.push({
      gpa: first * PAGE_SIZE,
      size: (end - first) * PAGE_SIZE,
      readonly: false,
      backend: pages.backend(first),
    });
  }
  return regions;
}

/** The runs of bits that are set: eight at a time where they are all the same. */
function* runsIn(bitmap: Uint8Array, count: number): Generator<readonly [first: number, end: number]> {
  let start = -1;
  for (let page = 0; page < count; ) {
    const byte = bitmap[Math.floor(page / 8)]!;
    const isInside = start >= 0;
    if (page % 8 === 0 && byte === (isInside ? 0xff : 0)) {
      page += 8;
      continue;
    }
    const isSetHere = (byte & (1 << (page & 7))) !== 0;
    if (isSetHere && !isInside) start = page;
    if (!isSetHere && isInside) {
      yield [start, page];
      start = -1;
    }
    page++;
  }
  if (start >= 0) yield [start, count];
}

/** How many bits are set in each byte. */
const BIT_COUNTS = Uint8Array.from({ length: 256 }, (_, byte) => byte.toString(2).replaceAll('0', '').length);

const PAGES_PER_COUNT = 512;
const BYTES_PER_COUNT = PAGES_PER_COUNT / 8;
const KEPT_PAGES = 1024;

/** Pages that are unpacked when they are read; the last ones stay. */
class DumpedPages {
  readonly #source: Source;
  readonly #bitmap: Uint8Array;
  readonly #descriptors: number;
  /** How many pages were dumped before each group of 512. */
  readonly #counts: Uint32Array;
  readonly #kept = new Map<number, Uint8Array>();

  constructor(source: Source, bitmap: Uint8Array, descriptors: number) {
    this.#source = source;
    this.#bitmap = bitmap;
    this.#descriptors = descriptors;
    this.#counts = new Uint32Array(Math.ceil(bitmap.length / BYTES_PER_COUNT) + 1);
    for (let at = 0, count = 0; at < bitmap.length; ) {
      count += BIT_COUNTS[bitmap[at++]!]!;
      if (at % BYTES_PER_COUNT === 0 || at === bitmap.length)
        this.#counts[Math.ceil(at / BYTES_PER_COUNT)] = count;
    }
  }

  backend(firstPage: number): RegionBackend {
    return {
      read: (offset, into) => {
        for (let at = 0; at < into.length; ) {
          const page = this.#page(firstPage + Math.floor((offset + at) / PAGE_SIZE));
          if (page === undefined) return false;
          const start = (offset + at) % PAGE_SIZE;
          const size = Math.min(into.length - at, PAGE_SIZE - start);
          into.set(page.subarray(start, start + size), at);
          at += size;
        }
        return true;
      },
    };
  }

  #page(number: number): Uint8Array | undefined {
    const kept = this.#kept.get(number);
    if (kept !== undefined) return kept;
    const page = this.#load(number);
    if (page === undefined) return undefined;
    if (this.#kept.size >= KEPT_PAGES) {
      for (const oldest of this.#kept.keys()) {
        this.#kept.delete(oldest);
        break;
      }
    }
    this.#kept.set(number, page);
    return page;
  }

  #load(number: number): Uint8Array | undefined {
    if (!isSet(this.#bitmap, number)) return undefined;
    const descriptor = readPart(
      this.#source,
      this.#descriptors + DESCRIPTOR * this.#rank(number),
      DESCRIPTOR,
    );
    if (descriptor === undefined) return undefined;
    const size = descriptor.readUInt32LE(8);
    const flags = descriptor.readUInt32LE(12);
    const bytes = readPart(this.#source, Number(descriptor.readBigUInt64LE(0)), size, 2 * PAGE_SIZE);
    if (bytes === undefined) return undefined;
    const unpack = UNPACK.find(([flag]) => (flags & flag) !== 0)?.[1];
    const page = unpack === undefined ? bytes : unpack(bytes, PAGE_SIZE);
    return page?.length === PAGE_SIZE ? page : undefined;
  }

  /** How many pages before this one were dumped. */
  #rank(number: number): number {
    const group = Math.floor(number / PAGES_PER_COUNT);
    let count = this.#counts[group]!;
    for (let page = group * PAGES_PER_COUNT; page < number; page++) if (isSet(this.#bitmap, page)) count++;
    return count;
  }
}

type Unpack = (packed: Uint8Array, size: number) => Uint8Array | undefined;

function unpackZlib(packed: Uint8Array, size: number): Uint8Array | undefined {
  try {
    return inflateSync(packed, { maxOutputLength: size });
  } catch {
    return undefined;
  }
}

/** By the flag of a page's descriptor; one without any is not packed. */
const UNPACK: readonly (readonly [flag: number, unpack: Unpack])[] = [
  [0x01, unpackZlib],
  [0x02, unpackLzo],
  [0x04, unpackSnappy],
  [0x20, (packed, size) => loadZstd().decompress(packed, size)],
];

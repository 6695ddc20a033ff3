import { damaged } from './contents.ts';
import { readPart, type Source } from './file.ts';
import { loadZstd, type Zstd } from './zstd.ts';

/*
 * The seekable format of Zstandard (contrib/seekable_format): frames that can be unpacked on their own, and behind
 * them, in a frame that others skip, their sizes. `zstd -d` unpacks such a file as any other.
 */

/** The sizes of a frame, in bytes: packed and unpacked. */
export type Frame = readonly [packed: number, unpacked: number];

export const ZSTD_MAGIC = Buffer.from([0x28, 0xb5, 0x2f, 0xfd]);
const SKIPPABLE_MAGIC = 0x184d2a5e;
const SEEKABLE_MAGIC = 0x8f92eab1;
const SKIPPABLE_HEADER = 8;
const FOOTER = 9;
const ENTRY = 8;
const CHECKSUM = 4;
const FLAG_CHECKSUMS = 0x80;
const RESERVED_FLAGS = 0x7c;
/** Enough for 4 TiB in frames of 256 KiB. */
const MAX_FRAMES = 1 << 24;
const MAX_UNPACKED = 64 << 20;
/** How much of what was unpacked last stays. */
const KEPT_BYTES = 64 << 20;

/** What ends a file of these frames. */
export function seekTable(frames: readonly Frame[]): Buffer {
  const table = Buffer.alloc(SKIPPABLE_HEADER + frames.length * ENTRY + FOOTER);
  table.writeUInt32LE(SKIPPABLE_MAGIC, 0);
  table.writeUInt32LE(table.length - SKIPPABLE_HEADER, 4);
  frames.forEach(([packed, unpacked], i) => {
    table.writeUInt32LE(packed, SKIPPABLE_HEADER + i * ENTRY);
    table.writeUInt32LE(unpacked, SKIPPABLE_HEADER + i * ENTRY + 4);
  });
  table.writeUInt32LE(frames.length, table.length - FOOTER);
  table.writeUInt32LE(SEEKABLE_MAGIC, table.length - 4);
  return table;
}

/** Whether a file that is packed with Zstandard can be read at any place. */
export function isSeekable(source: Source): boolean {
  const magic = readPart(source, source.size - 4, 4);
  return magic !== undefined && magic.readUInt32LE(0) === SEEKABLE_MAGIC;
}

/** The file that a packed one stands for; frames are unpacked when something in them is read. */
export class SeekableZstd implements Source {
  readonly size: number;
  readonly #source: Source;
  readonly #zstd: Zstd;
  /** Where each frame starts, packed and unpacked; one more for the end. */
  readonly #packed: Float64Array;
  readonly #unpacked: Float64Array;
  readonly #kept = new Map<number, Uint8Array>();
  #keptBytes = 0;

  /** Throws a KvmiError with code E_DUMP_DAMAGED, or E_DUMP_COMPRESSION when Zstandard is not available. */
  constructor(source: Source) {
    this.#source = source;
    this.#zstd = loadZstd();
    const { frames, entrySize, entries } = readTable(source);
    this.#packed = new Float64Array(frames + 1);
    this.#unpacked = new Float64Array(frames + 1);
    for (let i = 0; i < frames; i++) {
      const unpacked = entries.readUInt32LE(i * entrySize + 4);
      if (unpacked > MAX_UNPACKED) throw damaged(`a packed part stands for ${unpacked} bytes`);
      this.#packed[i + 1] = this.#packed[i]! + entries.readUInt32LE(i * entrySize);
      this.#unpacked[i + 1] = this.#unpacked[i]! + unpacked;
    }
    if (this.#packed[frames]! > source.size - entries.length) throw damaged('packed parts are missing');
    this.size = this.#unpacked[frames]!;
  }

  read(offset: number, into: Uint8Array): boolean {
    if (!(offset >= 0 && offset + into.length <= this.size)) return false;
    for (let done = 0, frame = this.#frameOf(offset); done < into.length; frame++) {
      const bytes = this.#frame(frame);
      if (bytes === undefined) return false;
      const from = offset + done - this.#unpacked[frame]!;
      const part = bytes.subarray(from, from + into.length - done);
      into.set(part, done);
      done += part.length;
    }
    return true;
  }

  /** The last frame that starts at `offset` or before it. */
  #frameOf(offset: number): number {
    let low = 0;
    let high = this.#unpacked.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >>> 1;
      if (this.#unpacked[middle]! <= offset) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  #frame(index: number): Uint8Array | undefined {
    const kept = this.#kept.get(index);
    if (kept !== undefined) {
      this.#kept.delete(index);
      this.#kept.set(index, kept);
      return kept;
    }
    const start = this.#packed[index]!;
    const packed = readPart(this.#source, start, this.#packed[index + 1]! - start, 2 * MAX_UNPACKED);
    const size = this.#unpacked[index + 1]! - this.#unpacked[index]!;
    const bytes = packed && this.#zstd.decompress(packed, size);
    if (bytes !== undefined) this.#keep(index, bytes);
    return bytes;
  }

  #keep(index: number, bytes: Uint8Array): void {
    this.#kept.set(index, bytes);
    this.#keptBytes += bytes.length;
    for (const [oldest, { length }] of this.#kept) {
      if (this.#keptBytes <= KEPT_BYTES || oldest === index) break;
      this.#kept.delete(oldest);
      this.#keptBytes -= length;
    }
  }
}

function readTable(source: Source): {
  readonly frames: number;
  readonly entrySize: number;
  readonly entries: Buffer;
} {
  const footer = readPart(source, source.size - FOOTER, FOOTER);
  if (footer === undefined) throw damaged('the table of its packed parts is cut off');
  const frames = footer.readUInt32LE(0);
  const flags = footer[4]!;
  if (frames > MAX_FRAMES || (flags & RESERVED_FLAGS) !== 0) throw damaged(`${frames} packed parts`);
  const entrySize = ENTRY + ((flags & FLAG_CHECKSUMS) === 0 ? 0 : CHECKSUM);
  const size = frames * entrySize;
  const start = source.size - FOOTER - size - SKIPPABLE_HEADER;
  const header = readPart(source, start, SKIPPABLE_HEADER);
  const isTable = header?.readUInt32LE(0) === SKIPPABLE_MAGIC && header.readUInt32LE(4) === size + FOOTER;
  const entries = isTable ? readPart(source, start + SKIPPABLE_HEADER, size, size) : undefined;
  if (entries === undefined) throw damaged('the table of its packed parts is cut off');
  return { frames, entrySize, entries };
}

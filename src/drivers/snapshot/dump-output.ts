import { ftruncateSync, write as writeWithCallback } from 'node:fs';
import { promisify } from 'node:util';
import type { DumpLayout } from './dump-layout.ts';
import { type Frame, seekTable } from './seekable.ts';
import { loadZstd } from './zstd.ts';

/** The file that a dump is written to. Offsets are those of the file as it is when it is unpacked. */
export interface DumpOutput {
  /** Everything before this is in the file. */
  readonly position: number;
  /**
   * Writes at `offset`, which is not before the position; what is left out between is zeros. `bytes` must not change
   * before it resolves. Answers how many bytes that took.
   */
  write(offset: number, bytes: Buffer): Promise<number>;
  /** Writes what is missing up to `size`. Answers the size of the file. */
  finish(size: number): Promise<number>;
}

const write = promisify(writeWithCallback);

async function writeAll(fd: number, bytes: Uint8Array, offset: number): Promise<void> {
  for (let done = 0; done < bytes.length; )
    done += (await write(fd, bytes, done, bytes.length - done, offset + done)).bytesWritten;
}

/** Zeros take no room in units of this many bytes: smaller holes cost more than they save. */
const HOLE = 64 << 10;
const ZEROS = Buffer.alloc(HOLE);

/** Whether all of `bytes` is zeros. */
export function isZeros(bytes: Buffer): boolean {
  for (let at = 0; at < bytes.length; at += HOLE) if (!isZeroUnit(bytes, at)) return false;
  return true;
}

function isZeroUnit(bytes: Buffer, at: number): boolean {
  const end = Math.min(at + HOLE, bytes.length);
  return bytes[at] === 0 && bytes.compare(ZEROS, 0, end - at, at, end) === 0;
}

/** The dump as it is, with holes for zeros. */
export class PlainOutput implements DumpOutput {
  readonly #fd: number;
  position: number;

  /** What is in the file from `position` on is thrown away. */
  constructor(fd: number, position: number, { size }: DumpLayout) {
    this.#fd = fd;
    this.position = position;
    ftruncateSync(fd, position);
    ftruncateSync(fd, size);
  }

  async write(offset: number, bytes: Buffer): Promise<number> {
    let written = 0;
    for (const [start, end] of dataIn(bytes)) {
      await writeAll(this.#fd, bytes.subarray(start, end), offset + start);
      written += end - start;
    }
    this.position = offset + bytes.length;
    return written;
  }

  finish(size: number): Promise<number> {
    this.position = size;
    return Promise.resolve(size);
  }
}

/** Where `bytes` are not zeros. */
function* dataIn(bytes: Buffer): Generator<readonly [start: number, end: number]> {
  let start = -1;
  for (let at = 0; at < bytes.length; at += HOLE) {
    const isData = !isZeroUnit(bytes, at);
    if (isData && start < 0) start = at;
    if (isData || start < 0) continue;
    yield [start, at];
    start = -1;
  }
  if (start >= 0) yield [start, bytes.length];
}

/** Small enough to unpack one for a few bytes. */
const FRAME = 256 << 10;

/** The dump packed with Zstandard, so that it can be read at any place. */
export class ZstdOutput implements DumpOutput {
  readonly #fd: number;
  readonly #frames: Frame[];
  readonly #zstd = loadZstd();
  #packed: number;
  #zeroFrame: Uint8Array | undefined;
  position: number;

  /** `frames`: what is in the file; others are added. Whatever comes behind them is thrown away. */
  constructor(fd: number, frames: Frame[]) {
    this.#fd = fd;
    this.#frames = frames;
    this.#packed = frames.reduce((sum, [packed]) => sum + packed, 0);
    this.position = frames.reduce((sum, [, unpacked]) => sum + unpacked, 0);
    ftruncateSync(fd, this.#packed);
  }

  async write(offset: number, bytes: Buffer): Promise<number> {
    const before = this.#packed;
    await this.#zerosUntil(offset);
    const sizes: number[] = [];
    const frames: Promise<Uint8Array>[] = [];
    for (let at = 0; at < bytes.length; at += FRAME) {
      const part = bytes.subarray(at, at + FRAME);
      sizes.push(part.length);
      frames.push(this.#zstd.compress(part));
    }
    await this.#append(await Promise.all(frames), sizes);
    return this.#packed - before;
  }

  async #append(frames: readonly Uint8Array[], sizes: readonly number[]): Promise<void> {
    const bytes = Buffer.concat(frames);
    await writeAll(this.#fd, bytes, this.#packed);
    frames.forEach((frame, i) => {
      this.#frames.push([frame.length, sizes[i]!]);
    });
    this.#packed += bytes.length;
    this.position += sizes.reduce((sum, size) => sum + size, 0);
  }

  /** A frame of zeros is a few bytes. */
  async #zerosUntil(offset: number): Promise<void> {
    this.#zeroFrame ??= await this.#zstd.compress(Buffer.alloc(FRAME));
    while (offset - this.position >= FRAME) {
      const count = Math.min(4096, Math.floor((offset - this.position) / FRAME));
      await this.#append(Array(count).fill(this.#zeroFrame), Array(count).fill(FRAME));
    }
    const rest = offset - this.position;
    if (rest > 0) await this.#append([await this.#zstd.compress(Buffer.alloc(rest))], [rest]);
  }

  async finish(size: number): Promise<number> {
    await this.#zerosUntil(size);
    const table = seekTable(this.#frames);
    await writeAll(this.#fd, table, this.#packed);
    return this.#packed + table.length;
  }
}

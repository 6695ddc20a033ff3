import { crc32 } from 'node:zlib';
import { KvmiError } from '../../error.ts';
import { PAGE_SIZE, type PhysicalMemory } from '../../machine/index.ts';
import type { DumpLayout, PlacedRegion } from './dump-layout.ts';
import type { DumpState } from './dump-manifest.ts';
import { type DumpOutput, isZeros } from './dump-output.ts';

export const CHUNK = 4 << 20;

export interface DumpProgress {
  /** Bytes of guest memory that were looked at, of all. */
  readonly done: number;
  readonly total: number;
  /** Bytes that were written; zeros take no room in the file. */
  readonly written: number;
}

export interface WriterOptions {
  readonly onProgress: ((progress: DumpProgress) => void) | undefined;
  readonly signal: AbortSignal | undefined;
  /** Called when all that was copied so far is in the file. */
  readonly onChunk: (written: number) => void;
}

/** A piece of a region, which one checksum is of. */
interface Chunk {
  readonly region: PlacedRegion;
  readonly at: number;
  readonly size: number;
}

/** The chunks of regions, in the order of their checksums. */
export function* chunksOf<R extends { readonly size: number }>(
  regions: readonly R[],
  chunkSize: number,
): Generator<{ readonly region: R; readonly at: number; readonly size: number }> {
  for (const region of regions)
    for (let at = 0; at < region.size; at += chunkSize)
      yield { region, at, size: Math.min(chunkSize, region.size - at) };
}

/** Copies memory to the file chunk by chunk: one is read while the one before it is written. */
export class DumpWriter {
  readonly #memory: PhysicalMemory;
  readonly #output: DumpOutput;
  readonly #state: DumpState;
  readonly #options: WriterOptions;
  readonly #buffers = [Buffer.allocUnsafeSlow(CHUNK), Buffer.allocUnsafeSlow(CHUNK)] as const;
  #written = 0;

  constructor(memory: PhysicalMemory, output: DumpOutput, state: DumpState, options: WriterOptions) {
    this.#memory = memory;
    this.#output = output;
    this.#state = state;
    this.#options = options;
  }

  /** Answers how many bytes were written. `onCopied` is called when nothing more is read from memory. */
  async run({ regions }: DumpLayout, onCopied: (() => void) | undefined): Promise<number> {
    const total = regions.reduce((sum, { size }) => sum + size, 0);
    const present = this.#state.checksums.length;
    let done = 0;
    let index = 0;
    let writing: Promise<void> = Promise.resolve();
    try {
      for (const chunk of chunksOf(regions, CHUNK)) {
        done += chunk.size;
        if (index++ < present) continue;
        if (this.#options.signal?.aborted) throw aborted();
        const bytes = await this.#read(chunk, this.#buffers[index & 1]!);
        await writing;
        writing = this.#write(chunk, bytes);
        // Whoever waits for it next gets the error.
        writing.catch(() => {});
        this.#options.onProgress?.({ done, total, written: this.#written });
      }
      onCopied?.();
    } finally {
      await writing;
    }
    return this.#written;
  }

  /** Undefined: all of it is zeros. */
  async #read({ region, at, size }: Chunk, buffer: Buffer): Promise<Buffer | undefined> {
    const gpa = region.gpa + at;
    const next = this.#memory.nextData === undefined ? gpa : this.#memory.nextData(gpa);
    if (next === undefined || next >= gpa + size) return undefined;
    const bytes = buffer.subarray(0, size);
    if (!(await this.#memory.read(gpa, bytes))) await this.#readPages(gpa, bytes);
    return isZeros(bytes) ? undefined : bytes;
  }

  /** Page by page, with zeros for those that cannot be read. */
  async #readPages(gpa: number, bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length; at += PAGE_SIZE) {
      const page = bytes.subarray(at, at + PAGE_SIZE);
      if (await this.#memory.read(gpa + at, page)) continue;
      page.fill(0);
      this.#state.unreadable++;
    }
  }

  async #write({ region, at }: Chunk, bytes: Buffer | undefined): Promise<void> {
    if (at === 0 && region.header !== undefined) await this.#writeHeader(region);
    if (bytes !== undefined) this.#written += await this.#output.write(region.offset + at, bytes);
    this.#state.checksums.push(bytes === undefined ? 0 : crc32(bytes));
    this.#options.onChunk(this.#written);
  }

  /** A dump that goes on has it already, with the registers of its beginning. */
  async #writeHeader({ header, offset }: PlacedRegion): Promise<void> {
    const start = offset - header!.length;
    if (start >= this.#output.position)
      this.#written += await this.#output.write(start, Buffer.from(header!));
  }
}

function aborted(): KvmiError {
  return new KvmiError('E_ABORTED', 'the dump was interrupted', {
    hint: 'Run it again to go on where it was.',
  });
}

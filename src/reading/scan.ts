import type { Awaitable } from '../awaitable.ts';
import type { Gpa, MemoryRegion, PhysicalMemory } from '../machine/index.ts';
import { PAGE_SIZE } from '../machine/index.ts';
import { type Walk, wait } from './walk.ts';

/** How far a search through guest memory has come, in bytes. */
export interface Progress {
  /** What is being looked for. */
  readonly phase: string;
  readonly done: number;
  readonly total: number;
}

export type OnProgress = (progress: Progress) => void;

/** A run of guest-physical memory. */
export interface Range {
  readonly gpa: Gpa;
  readonly size: number;
}

const CHUNK = 1 << 20;

export interface ScanOptions {
  readonly phase: string;
  /** Bytes of the previous chunk that are seen again, so that nothing is missed at a border. */
  readonly overlap?: number;
  readonly onProgress?: OnProgress | undefined;
}

/**
 * Reads `ranges` in chunks and gives each to `look`, until that answers something. What is not backed, or known to be
 * zeros, is left out. The bytes are valid until `look` has answered.
 */
export function* scan<T>(
  memory: PhysicalMemory,
  ranges: readonly Range[],
  options: ScanOptions,
  look: (bytes: Buffer, gpa: Gpa) => Awaitable<T | undefined>,
): Walk<T | undefined> {
  const { phase, overlap = 0, onProgress } = options;
  const total = ranges.reduce((sum, range) => sum + range.size, 0);
  const chunk = Buffer.allocUnsafeSlow(CHUNK + overlap);
  let done = 0;
  for (const { gpa, size } of ranges) {
    const end = gpa + size;
    for (let at = gpa; at < end; ) {
      const data = memory.nextData === undefined ? at : (memory.nextData(at) ?? end);
      at = Math.max(at, data - (data % PAGE_SIZE));
      if (at >= end) break;
      const bytes = chunk.subarray(0, Math.min(CHUNK + overlap, end - at));
      if (yield* wait(memory.read(at, bytes))) {
        const found = yield* wait(look(bytes, at));
        if (found !== undefined) return found;
      }
      at += CHUNK;
      onProgress?.({ phase, done: done + Math.min(at, end) - gpa, total });
    }
    done += size;
  }
  return undefined;
}

/** The parts of memory that can hold a kernel: all that may be written. */
export function ramOf(regions: readonly MemoryRegion[]): Range[] {
  return regions.filter((region) => !region.readonly);
}

const LOW_END = 32 << 20;
const HIGH_END = 64 << 20;
/** What a kernel has allocated for the memory itself (struct page, hash tables) before it allocates other things. */
const UPPER_PART = 1 / 8;

/** The same memory with both ends of each range first: what a kernel allocates while it boots lies there. */
export function endsFirst(ranges: readonly Range[]): Range[] {
  const isLong = ({ size }: Range) => size * (1 - UPPER_PART) > LOW_END + HIGH_END;
  const long = ranges.filter(isLong);
  const part = (from: (range: Range) => number, to: (range: Range) => number): Range[] =>
    long
      .map((range) => ({ gpa: range.gpa + from(range), size: to(range) - from(range) }))
      .filter(({ size }) => size > 0);
  const upper = ({ size }: Range) => {
    const start = size * (1 - UPPER_PART);
    return Math.min(start - (start % PAGE_SIZE), size - HIGH_END);
  };
  return [
    ...ranges.filter((range) => !isLong(range)),
    ...part(
      () => 0,
      () => LOW_END,
    ),
    ...part(
      ({ size }) => size - HIGH_END,
      ({ size }) => size,
    ),
    ...part(upper, ({ size }) => size - HIGH_END),
    ...part(() => LOW_END, upper),
  ];
}

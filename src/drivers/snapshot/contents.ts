import { KvmiError } from '../../error.ts';
import { type BackedRegion, GPA_LIMIT, PAGE_SIZE, type RegionBackend } from '../../machine/index.ts';
import type { Source } from './file.ts';

/** What a dump holds. */
export interface DumpContents {
  readonly format: DumpFormat;
  readonly regions: readonly BackedRegion[];
  /** Of each vCPU; empty when the dump has none. */
  readonly states: readonly DumpedState[];
  /** What the kernel says about itself, when the dump carries it apart from memory. */
  readonly vmcoreinfo: string | undefined;
  /** Bytes of memory that the file should hold and does not, because it is cut off. */
  readonly missing: number;
}

/** What a dump has of a vCPU. */
export interface DumpedState {
  /** The 536-byte block that events carry. */
  readonly bytes: Uint8Array;
  /** Which of the MSRs in it the dump has; the others are zeros. */
  readonly msrs: ReadonlySet<number>;
}

export type DumpFormat = 'raw' | 'elf' | 'lime' | 'kdump';

/**
 * Guest memory from `gpa` on, in a file from `offset` on. What is beyond `fileSize` reads as zeros; what the file should
 * hold and does not cannot be read.
 */
export interface Segment {
  readonly gpa: number;
  readonly size: number;
  readonly offset: number;
  readonly fileSize: number;
}

export const MAX_SEGMENTS = 65_536;

export function damaged(what: string): KvmiError {
  return new KvmiError('E_DUMP_DAMAGED', `the memory dump is damaged: ${what}`, {
    hint: 'It may be cut off or still being written. Compare its size with that of the machine, and dump again.',
  });
}

type PartialContents = Pick<DumpContents, 'regions' | 'missing'>;

/**
 * Regions from the segments of a dump: sorted, whole pages, what overlaps left out. Bytes of a page that no segment
 * has read as zeros.
 */
export function memoryIn(source: Source, segments: readonly Segment[]): PartialContents {
  const sorted = segments
    .filter(({ gpa, size }) => size > 0 && gpa >= 0 && gpa + size <= GPA_LIMIT)
    .sort((a, b) => a.gpa - b.gpa);
  const regions: BackedRegion[] = [];
  let end = 0;
  let missing = 0;
  for (const segment of sorted) {
    const start = Math.max(end, segment.gpa - (segment.gpa % PAGE_SIZE));
    const stop = Math.ceil((segment.gpa + segment.size) / PAGE_SIZE) * PAGE_SIZE;
    if (stop <= start) continue;
    const backend = segmentBackend(source, segment, start);
    regions.push({ gpa: start, size: stop - start, readonly: false, backend });
    missing += Math.max(0, Math.min(segment.fileSize, segment.offset + segment.fileSize - source.size));
    end = stop;
  }
  return { regions, missing };
}

function segmentBackend(source: Source, segment: Segment, regionGpa: number): RegionBackend {
  const inFile = Math.min(segment.size, segment.fileSize);
  return {
    read(offset, into) {
      const from = regionGpa + offset - segment.gpa;
      if (from >= 0 && from + into.length <= inFile) return source.read(segment.offset + from, into);
      into.fill(0);
      const start = Math.max(0, from);
      const end = Math.min(inFile, from + into.length);
      return end <= start || source.read(segment.offset + start, into.subarray(start - from, end - from));
    },
  };
}

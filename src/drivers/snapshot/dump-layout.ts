import type { MemoryRegion } from '../../machine/index.ts';
import { type DumpNotes, elfHeader } from './elf-header.ts';
import { limeHeader } from './lime.ts';

/** The formats that are written. */
export type WrittenFormat = 'elf' | 'raw' | 'lime';

/** Where a region goes in the file. */
export interface PlacedRegion {
  readonly gpa: number;
  readonly size: number;
  readonly offset: number;
  /** What stands right before it. */
  readonly header?: Uint8Array;
}

/** Regions in the order in which they are in the file, and its size. */
export interface DumpLayout {
  readonly regions: readonly PlacedRegion[];
  readonly size: number;
}

const LAYOUTS: Readonly<
  Record<WrittenFormat, (regions: readonly MemoryRegion[], notes: DumpNotes) => readonly PlacedRegion[]>
> = {
  raw: (regions) => regions.map(({ gpa, size }) => ({ gpa, size, offset: gpa })),
  elf(regions, notes) {
    const { header, offsets } = elfHeader(regions, notes);
    return regions.map(({ gpa, size }, i) => ({
      gpa,
      size,
      offset: offsets[i]!,
      ...(i === 0 && { header }),
    }));
  },
  lime(regions) {
    let end = 0;
    return regions.map(({ gpa, size }) => {
      const header = limeHeader(gpa, size);
      const offset = end + header.length;
      end = offset + size;
      return { gpa, size, offset, header };
    });
  },
};

export function layoutOf(
  format: WrittenFormat,
  regions: readonly MemoryRegion[],
  notes: DumpNotes,
): DumpLayout {
  const placed = LAYOUTS[format](regions, notes);
  const last = placed.at(-1);
  return { regions: placed, size: last === undefined ? 0 : last.offset + last.size };
}

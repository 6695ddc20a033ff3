import { PAGE_SIZE } from '../../../machine/address.ts';

/** Where a slot may be in its VMM. */
export interface Backing {
  readonly hva: number;
  readonly size: number;
}

/** A mapping of the VMM. */
export interface Range {
  readonly start: number;
  readonly end: number;
}

const MIB = 2 ** 20;
const GIB = 2 ** 30;
/** Where memory below 4 GiB may end; the rest of it is from 4 GiB on. */
const LOW_MEMORY_ENDS = [2 * GIB, 2.75 * GIB, 3 * GIB, 3.25 * GIB, 3.5 * GIB, 3.75 * GIB];
/** Where a PC's first MiB is divided. */
const LOW_DIVISIONS = [0xa0000, 0xc0000, 0xe0000, 0xf0000, MIB];
/** Where the Q35 chipset shows, while firmware sets it up, the memory that the VGA window hides. */
const Q35_SMRAM = 0xfeda0000;
const VGA_WINDOW = 0xa0000;
const VGA_WINDOW_SIZE = 0x20000;
/** Smaller mappings have no memory of the guest in parts. */
const DIVIDED = MIB;

/**
 * What may be at `gpa` in the guest, from the largest mapping of the VMM to the smallest: all of it, or a part as VMMs
 * lay out a PC; at last ends of mappings.
 */
export function* backingsAt(gpa: number, mappings: readonly Range[]): Generator<Backing> {
  const largestFirst = [...mappings].sort((a, b) => b.end - b.start - (a.end - a.start));
  for (const mapping of largestFirst) {
    const size = mapping.end - mapping.start;
    yield { hva: mapping.start, size };
    if (size < DIVIDED) continue;
    for (const offset of offsetsAt(gpa)) yield* partsOf(mapping, offset, gpa);
    if (gpa === Q35_SMRAM) yield { hva: mapping.start + VGA_WINDOW, size: VGA_WINDOW_SIZE };
  }
  for (const { start, end } of largestFirst) {
    for (let size = 64 * 1024; size <= MIB; size *= 2)
      if (size < end - start) yield { hva: end - size, size };
  }
}

/** How far into a mapping of the guest's memory an address is. */
function offsetsAt(gpa: number): number[] {
  return gpa < 4 * GIB ? [gpa] : LOW_MEMORY_ENDS.map((end) => gpa - 4 * GIB + end);
}

function* partsOf({ start, end }: Range, offset: number, gpa: number): Generator<Backing> {
  const hva = start + offset;
  if (hva >= end) return;
  yield { hva, size: end - hva };
  for (const division of [...LOW_DIVISIONS, ...LOW_MEMORY_ENDS]) {
    if (division > gpa && start + division <= end) yield { hva, size: division - gpa };
  }
  // The shadow of option ROMs, in pages.
  if (gpa >= 0xc0000 && gpa < MIB)
    for (let size = PAGE_SIZE; gpa + size <= MIB; size += PAGE_SIZE) yield { hva, size };
}

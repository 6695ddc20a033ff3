import type { PagingMode } from './paging.ts';

/*
 * Page-table entries are handled as two 32-bit halves, low and high: bigints would cost an allocation a level.
 * Bits 52-62 are ignored or reserved, so an address is at most 52 bits whatever the guest wrote.
 */

/** What linear addresses reach without paging: one page, as it were. */
export const LINEAR_LIMIT_32 = 2 ** 32;

export const ENTRY_PRESENT = 1;
const ENTRY_LARGE = 0x80;
/** Bit 63, in the high half. */
const ENTRY_NO_EXECUTE = 1 << 31;

/*
 * What a mapping allows, in the places of the bits of an entry that grant it. Execution has none; it takes that of
 * the present bit, which is set wherever there is anything to allow.
 */
export const RIGHT_EXECUTE = ENTRY_PRESENT;
export const RIGHT_WRITE = 2;
export const RIGHT_USER = 4;
export const ALL_RIGHTS = RIGHT_EXECUTE | RIGHT_WRITE | RIGHT_USER;

/** One level of page tables. Masks are of the low half of an entry unless they say otherwise. */
export interface Level {
  /** log2 of the bytes that one entry maps … */
  readonly shift: number;
  /** … and that many bytes. */
  readonly size: number;
  /** The number of entries of a table, less one. */
  readonly indexMask: number;
  /** The bit that makes a present entry map memory instead of naming a table; 0 when nothing does. */
  readonly leafBit: number;
  /** Rights that the level does not restrict, because its entries have no such bits. */
  readonly grants: number;
  /** Bits that must be zero when the entry names a table. */
  readonly reservedTable: number;
  /** Bits that must be zero when it maps memory. */
  readonly reservedLeaf: number;
  /** Bits of the high half that must be zero. */
  readonly reservedHigh: number;
  /** Bits 20-13 of a leaf are bits 39-32 of its address (PSE-36). */
  readonly pse36: boolean;
}

/** The tables of one paging mode. */
export interface PageFormat {
  /** From the top. */
  readonly levels: readonly Level[];
  /** In bytes. */
  readonly entrySize: 4 | 8;
  /** An address is canonical when its high half, shifted right by this with its sign, is 0 … */
  readonly canonicalShift: number;
  /** … or -1, where the addresses have two halves. */
  readonly twoHalves: boolean;
}

function level(shift: number, more: Partial<Omit<Level, 'shift' | 'size'>> = {}): Level {
  return {
    shift,
    size: 2 ** shift,
    indexMask: 511,
    leafBit: 0,
    grants: 0,
    reservedTable: 0,
    reservedLeaf: 0,
    reservedHigh: 0,
    pse36: false,
    ...more,
  };
}

const PAE_HIGH = 0x7ff00000;
const PML5 = level(48, { reservedTable: ENTRY_LARGE });
const PML4 = level(39, { reservedTable: ENTRY_LARGE });
const PDPT = level(30, { leafBit: ENTRY_LARGE, reservedLeaf: 0x3fffe000 });
const PD = level(21, { leafBit: ENTRY_LARGE, reservedLeaf: 0x001fe000 });
const PT = level(12, { leafBit: ENTRY_PRESENT });
const PAE_PDPT = level(30, {
  indexMask: 3,
  grants: RIGHT_WRITE | RIGHT_USER,
  reservedTable: 0x1e6,
  reservedHigh: PAE_HIGH | ENTRY_NO_EXECUTE,
});
const PAE_PD: Level = { ...PD, reservedHigh: PAE_HIGH };
const PAE_PT: Level = { ...PT, reservedHigh: PAE_HIGH };
const LEGACY_PD = level(22, { indexMask: 1023 });
const PSE_PD = level(22, { indexMask: 1023, leafBit: ENTRY_LARGE, reservedLeaf: 1 << 21, pse36: true });
const LEGACY_PT = level(12, { indexMask: 1023, leafBit: ENTRY_PRESENT });

const long = { entrySize: 8, twoHalves: true } as const;
const short = { canonicalShift: 0, twoHalves: false } as const;

export const PAGE_FORMATS: Readonly<Record<PagingMode, PageFormat>> = {
  none: { ...short, entrySize: 4, levels: [] },
  '32-bit': { ...short, entrySize: 4, levels: [LEGACY_PD, LEGACY_PT] },
  '32-bit-pse': { ...short, entrySize: 4, levels: [PSE_PD, LEGACY_PT] },
  pae: { ...short, entrySize: 8, levels: [PAE_PDPT, PAE_PD, PAE_PT] },
  '4-level': { ...long, canonicalShift: 15, levels: [PML4, PDPT, PD, PT] },
  '5-level': { ...long, canonicalShift: 24, levels: [PML5, PML4, PDPT, PD, PT] },
};

/** Whether a present entry maps memory, rather than naming the next table. */
export function isLeaf(level: Level, low: number): boolean {
  return (low & level.leafBit) !== 0;
}

/**
 * Whether a present entry has a bit set that must be zero on every processor: the processor faults on it.
 * Bits that depend on the width of physical addresses (MAXPHYADDR) are not among them.
 */
export function hasReservedBits(level: Level, low: number, high: number, nx: boolean): boolean {
  const reserved = isLeaf(level, low) ? level.reservedLeaf : level.reservedTable;
  const reservedHigh = nx ? level.reservedHigh : level.reservedHigh | ENTRY_NO_EXECUTE;
  return ((low & reserved) | (high & reservedHigh)) !== 0;
}

/** What a present entry without reserved bits leaves of the rights of the levels above it. */
export function rightsBelow(rights: number, level: Level, low: number, high: number): number {
  const granted = rights & (low | level.grants);
  return (high & ENTRY_NO_EXECUTE) === 0 ? granted : granted & ~RIGHT_EXECUTE;
}

/** The entry's place in its table for the linear address with these halves. */
export function entryIndex(level: Level, low: number, high: number): number {
  const { shift } = level;
  const bits = shift >= 32 ? high >>> (shift - 32) : (low >>> shift) | (high << (32 - shift));
  return bits & level.indexMask;
}

/** The table that an entry names. */
export function tableAddress(low: number, high: number): number {
  return (high & 0xfffff) * 0x1_0000_0000 + ((low & 0xfffff000) >>> 0);
}

/** The first byte of the memory that a leaf maps. */
export function leafAddress(level: Level, low: number, high: number): number {
  const highBits = level.pse36 && isLeaf(level, low) ? (low >>> 13) & 0xff : high & 0xfffff;
  return highBits * 0x1_0000_0000 + ((low & (-1 << level.shift)) >>> 0);
}

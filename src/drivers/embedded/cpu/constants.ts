/** Bits of rflags. */
export const FLAG = {
  CF: 1,
  PF: 1 << 2,
  AF: 1 << 4,
  ZF: 1 << 6,
  SF: 1 << 7,
  TF: 1 << 8,
  IF: 1 << 9,
  DF: 1 << 10,
  OF: 1 << 11,
  IOPL: 3 << 12,
  NT: 1 << 14,
  RF: 1 << 16,
  VM: 1 << 17,
  AC: 1 << 18,
  VIF: 1 << 19,
  VIP: 1 << 20,
  ID: 1 << 21,
} as const;

/** The flags that arithmetic sets. */
export const ARITHMETIC_FLAGS = FLAG.CF | FLAG.PF | FLAG.AF | FLAG.ZF | FLAG.SF | FLAG.OF;
/** The other flags that exist; everything else reads as zero, but bit 1 as one. */
export const SYSTEM_FLAGS = FLAG.TF | FLAG.IF | FLAG.DF | FLAG.IOPL | FLAG.NT | FLAG.RF | FLAG.AC | FLAG.ID;

export const CR0 = {
  PE: 1,
  MP: 1 << 1,
  EM: 1 << 2,
  TS: 1 << 3,
  ET: 1 << 4,
  NE: 1 << 5,
  WP: 1 << 16,
  AM: 1 << 18,
  NW: 1 << 29,
  CD: 1 << 30,
  PG: 1 << 31,
} as const;

export const CR4 = {
  DE: 1 << 3,
  PSE: 1 << 4,
  PAE: 1 << 5,
  MCE: 1 << 6,
  PGE: 1 << 7,
  PCE: 1 << 8,
  OSFXSR: 1 << 9,
  OSXMMEXCPT: 1 << 10,
  UMIP: 1 << 11,
  FSGSBASE: 1 << 16,
  OSXSAVE: 1 << 18,
  SMEP: 1 << 20,
} as const;

/** The bits of CR0 and CR4 that this processor knows; setting another one raises #GP. */
export const CR0_KNOWN = Object.values(CR0).reduce((all, bit) => all | bit, 0);
export const CR4_KNOWN = Object.values(CR4).reduce((all, bit) => all | bit, 2 | 4);

export const EFER = { SCE: 1, LME: 1 << 8, LMA: 1 << 10, NXE: 1 << 11 } as const;

/** Components of XCR0 that can be on: x87, SSE, AVX. */
export const XCR0_KNOWN = 7;

/** Physical address bits (CPUID leaf 0x80000008). */
export const PHYSICAL_BITS = 40;
/** Bits of the high half of a page-table entry that must be zero: between the physical address and bit 52. */
export const ENTRY_RESERVED_HIGH = 0x000f_ff00;

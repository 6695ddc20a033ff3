import type { CpuidLeaf } from '../../../machine/index.ts';
import { CR4, PHYSICAL_BITS } from './constants.ts';
import type { Cpu } from './cpu.ts';
import { XSAVE_AVX_OFFSET, XSAVE_AVX_SIZE, XSAVE_LEGACY_SIZE } from './xsave.ts';

/** Four characters as CPUID packs them. */
function word(text: string, at: number): number {
  return (
    (text.charCodeAt(at) |
      (text.charCodeAt(at + 1) << 8) |
      (text.charCodeAt(at + 2) << 16) |
      (text.charCodeAt(at + 3) << 24)) >>>
    0
  );
}

const VENDOR = 'GenuineIntel';
const BRAND = 'kvmi embedded x86-64 machine'.padEnd(48, '\0');
const HYPERVISOR = 'KVMKVMKVM\0\0\0';

/** Leaf 1: what this processor can do. */
const ECX1 = { cx16: 13, x2apic: 21, popcnt: 23, xsave: 26, hypervisor: 31 } as const;
const EDX1 = {
  pse: 3,
  tsc: 4,
  msr: 5,
  pae: 6,
  cx8: 8,
  apic: 9,
  mtrr: 12,
  pge: 13,
  cmov: 15,
  pat: 16,
  pse36: 17,
  fxsr: 24,
  sse: 25,
  sse2: 26,
} as const;
/** Leaf 0x80000001. */
const ECX_EXTENDED = { lahf: 0, lzcnt: 5 } as const;
const EDX_EXTENDED = { syscall: 11, nx: 20, pages1g: 26, rdtscp: 27, longMode: 29 } as const;
/** Leaf 7. */
const EBX7 = { fsgsbase: 0, bmi1: 3, smep: 7 } as const;
const ECX7 = { umip: 2 } as const;

function mask(positions: Readonly<Record<string, number>>): number {
  return Object.values(positions).reduce((all, position) => (all | (1 << position)) >>> 0, 0);
}

const OSXSAVE = 1 << 27;
const NO_SUBLEAF = -1;

/** Rows: leaf, subleaf (or none), eax, ebx, ecx, edx. */
const TABLE: readonly (readonly [number, number, number, number, number, number])[] = [
  [0, NO_SUBLEAF, 0xd, word(VENDOR, 0), word(VENDOR, 8), word(VENDOR, 4)],
  [1, NO_SUBLEAF, 0x0006_0f01, 0x0000_0800, mask(ECX1), mask(EDX1)],
  [7, 0, 0, mask(EBX7), mask(ECX7), 0],
  [0xd, 0, 7, XSAVE_AVX_OFFSET + XSAVE_AVX_SIZE, XSAVE_AVX_OFFSET + XSAVE_AVX_SIZE, 0],
  [0xd, 1, 0, 0, 0, 0],
  [0xd, 2, XSAVE_AVX_SIZE, XSAVE_AVX_OFFSET, 0, 0],
  [0x4000_0000, NO_SUBLEAF, 0x4000_0001, word(HYPERVISOR, 0), word(HYPERVISOR, 4), word(HYPERVISOR, 8)],
  [0x4000_0001, NO_SUBLEAF, 0, 0, 0, 0],
  [0x8000_0000, NO_SUBLEAF, 0x8000_0008, 0, 0, 0],
  [0x8000_0001, NO_SUBLEAF, 0, 0, mask(ECX_EXTENDED), mask(EDX_EXTENDED)],
  ...[0, 1, 2].map(
    (i) =>
      [
        0x8000_0002 + i,
        NO_SUBLEAF,
        word(BRAND, 16 * i),
        word(BRAND, 16 * i + 4),
        word(BRAND, 16 * i + 8),
        word(BRAND, 16 * i + 12),
      ] as const,
  ),
  [0x8000_0008, NO_SUBLEAF, PHYSICAL_BITS | (48 << 8), 0, 0, 0],
];

/** One row of the processor's CPUID table, as it is now; undefined when there is no such leaf. */
export function cpuidLeaf(c: Cpu, leaf: number, subleaf: number): CpuidLeaf | undefined {
  const row = TABLE.find(([l, s]) => l === leaf && (s === NO_SUBLEAF || s === subleaf));
  if (!row) return undefined;
  let [, , eax, ebx, ecx, edx] = row;
  if (leaf === 1) {
    ebx = (ebx | (c.index << 24)) >>> 0;
    if (c.cr4 & CR4.OSXSAVE) ecx = (ecx | OSXSAVE) >>> 0;
  }
  if (leaf === 0xd && subleaf === 0 && (c.xcr0 & 4) === 0) ebx = XSAVE_LEGACY_SIZE;
  return { eax, ebx, ecx, edx };
}

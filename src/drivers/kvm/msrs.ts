import { getU64, putU32, putU64 } from '../../abi/bytes.ts';
import { kvmMsrEntry } from '../../abi/x86.ts';

/** Size of the header of struct kvm_msrs: the number of entries and padding. */
const HEADER = 8;

/** The size of a struct kvm_msrs with `count` entries. */
export function msrsSize(count: number): number {
  return HEADER + count * kvmMsrEntry.size;
}

/** Writes a struct kvm_msrs that asks for `indices`. */
export function putMsrRequest(into: Uint8Array, indices: readonly number[]): void {
  into.fill(0, 0, msrsSize(indices.length));
  putU32(into, 0, indices.length);
  for (let i = 0; i < indices.length; i++) putU32(into, HEADER + i * kvmMsrEntry.size, indices[i]!);
}

/** The value of entry `i`. */
export function msrValue(msrs: Uint8Array, i: number): bigint {
  return getU64(msrs, HEADER + i * kvmMsrEntry.size + 8);
}

/** Writes a struct kvm_msrs that sets one MSR. */
export function putMsrWrite(into: Uint8Array, index: number, value: bigint): void {
  putMsrRequest(into, [index]);
  putU64(into, HEADER + 8, value);
}

/*
 * Memory types (Intel SDM vol. 3, 12.11). KVM has eight variable ranges.
 */

const MTRR_DEF_TYPE = 0x2ff;
const VARIABLE_COUNT = 8;
const VARIABLE_BASE = 0x200;
/** Fixed ranges: MSR, first address, size of each of its eight parts. */
const FIXED: readonly (readonly [msr: number, base: number, size: number])[] = [
  [0x250, 0x00000, 0x10000],
  [0x258, 0x80000, 0x4000],
  [0x259, 0xa0000, 0x4000],
  ...Array.from({ length: 8 }, (_, i) => [0x268 + i, 0xc0000 + i * 0x8000, 0x1000] as const),
];
const FIXED_END = 0x100000;
const DEF_ENABLE = 1n << 11n;
const DEF_FIXED_ENABLE = 1n << 10n;
const RANGE_VALID = 1n << 11n;
const ADDRESS_BITS = ~0xfffn & ((1n << 52n) - 1n);
const UNCACHEABLE = 0;
const WRITE_THROUGH = 4;
const WRITE_BACK = 6;

/** The MSRs that decide about memory types. */
export const MTRR_MSRS: readonly number[] = [
  MTRR_DEF_TYPE,
  ...FIXED.map(([msr]) => msr),
  ...Array.from({ length: VARIABLE_COUNT * 2 }, (_, i) => VARIABLE_BASE + i),
];

/** The memory type of an address, from the values of {@link MTRR_MSRS}. */
export function memoryType(values: readonly bigint[], gpa: number): number {
  const [defaults, ...rest] = values as [bigint, ...bigint[]];
  if ((defaults & DEF_ENABLE) === 0n) return UNCACHEABLE;
  if (gpa < FIXED_END && (defaults & DEF_FIXED_ENABLE) !== 0n) return fixedType(rest, gpa);
  const address = BigInt(gpa);
  const types: number[] = [];
  for (let i = 0; i < VARIABLE_COUNT; i++) {
    const base = rest[FIXED.length + 2 * i]!;
    const mask = rest[FIXED.length + 2 * i + 1]!;
    if ((mask & RANGE_VALID) === 0n) continue;
    const significant = mask & ADDRESS_BITS;
    if ((address & significant) === (base & significant)) types.push(Number(base & 0xffn));
  }
  return combine(types, Number(defaults & 0xffn));
}

function fixedType(fixed: readonly bigint[], gpa: number): number {
  const index = FIXED.findIndex(([, base, size]) => gpa >= base && gpa < base + 8 * size);
  const [, base, size] = FIXED[index]!;
  return Number((fixed[index]! >> BigInt(8 * Math.floor((gpa - base) / size))) & 0xffn);
}

/** Ranges that overlap: uncacheable wins, then write-through over write-back. */
function combine(types: readonly number[], otherwise: number): number {
  if (types.length === 0) return otherwise;
  if (types.includes(UNCACHEABLE)) return UNCACHEABLE;
  return types.includes(WRITE_THROUGH) && types.includes(WRITE_BACK) ? WRITE_THROUGH : types[0]!;
}

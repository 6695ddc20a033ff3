/* Memory types by the MTRRs (Intel SDM volume 3, "Memory Type Range Registers"). */

const UNCACHEABLE = 0;
const WRITE_THROUGH = 4;
const WRITE_BACK = 6;

const MSR_VARIABLE = 0x200;
const VARIABLE_RANGES = 8;
const MSR_DEFAULT_TYPE = 0x2ff;
const ENABLED = 1n << 11n;
const FIXED_ENABLED = 1n << 10n;
const FIXED_END = 0x100000;
const VALID = 1n << 11n;
const TYPE_MASK = 0xffn;
const ADDRESS_MASK = ~0xfffn;

/** The MSRs of the fixed ranges: [first address, bytes of each of the eight parts, MSR]. */
const FIXED_RANGES: readonly (readonly [start: number, step: number, msr: number])[] = [
  [0x00000, 0x10000, 0x250],
  [0x80000, 0x4000, 0x258],
  [0xa0000, 0x4000, 0x259],
  ...Array.from({ length: 8 }, (_, i) => [0xc0000 + 0x8000 * i, 0x1000, 0x268 + i] as const),
];

/** What decides about memory types. */
export const MTRR_MSRS: readonly number[] = [
  MSR_DEFAULT_TYPE,
  ...FIXED_RANGES.map(([, , msr]) => msr),
  ...Array.from({ length: 2 * VARIABLE_RANGES }, (_, i) => MSR_VARIABLE + i),
];

/**
 * The memory type of a guest-physical address, with the precedences of the SDM ("MTRR Precedences"); `msr` reads those
 * of {@link MTRR_MSRS}.
 */
export function mtrrType(msr: (index: number) => bigint, gpa: number): number {
  const settings = msr(MSR_DEFAULT_TYPE);
  if ((settings & ENABLED) === 0n) return UNCACHEABLE;
  if (gpa < FIXED_END && (settings & FIXED_ENABLED) !== 0n) return fixedType(msr, gpa);
  return overlapping(variableTypes(msr, BigInt(gpa))) ?? Number(settings & TYPE_MASK);
}

function fixedType(msr: (index: number) => bigint, gpa: number): number {
  const [start, step, index] = FIXED_RANGES.findLast((range) => gpa >= range[0])!;
  const part = Math.floor((gpa - start) / step);
  return Number((msr(index) >> BigInt(8 * part)) & TYPE_MASK);
}

/** The types of the variable ranges that hold an address. */
function variableTypes(msr: (index: number) => bigint, gpa: bigint): Set<number> {
  const types = new Set<number>();
  for (let i = 0; i < VARIABLE_RANGES; i++) {
    const base = msr(MSR_VARIABLE + 2 * i);
    const mask = msr(MSR_VARIABLE + 2 * i + 1);
    const bits = mask & ADDRESS_MASK;
    if ((mask & VALID) !== 0n && (gpa & bits) === (base & bits)) types.add(Number(base & TYPE_MASK));
  }
  return types;
}

/** Which one of these holds. What the SDM leaves undefined is write-back, as in the kernel (arch/x86/kvm/mtrr.c). */
function overlapping(types: ReadonlySet<number>): number | undefined {
  if (types.has(UNCACHEABLE)) return UNCACHEABLE;
  if (types.size <= 1) return [...types][0];
  const isDefined = types.size === 2 && types.has(WRITE_THROUGH) && types.has(WRITE_BACK);
  return isDefined ? WRITE_THROUGH : WRITE_BACK;
}

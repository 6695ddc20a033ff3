/** Memory types of MTRRs (Intel SDM volume 3, "Memory Type Range Registers"). */
const UNCACHEABLE = 0;
const WRITE_THROUGH = 4;
const WRITE_BACK = 6;

const MSR_VARIABLE = 0x200;
const VARIABLE_RANGES = 8;
const MSR_DEFAULT_TYPE = 0x2ff;
const ENABLED = 1n << 11n;
const FIXED_ENABLED = 1n << 10n;
const VALID = 1n << 11n;
const TYPE_MASK = 0xffn;
const PAGE_MASK = ~0xfffn;

/** The MSRs of the fixed ranges: [first address, bytes of each of the eight parts, MSR]. */
const FIXED_RANGES: readonly (readonly [start: number, step: number, msr: number])[] = [
  [0x00000, 0x10000, 0x250],
  [0x80000, 0x4000, 0x258],
  [0xa0000, 0x4000, 0x259],
  ...Array.from({ length: 8 }, (_, i) => [0xc0000 + 0x8000 * i, 0x1000, 0x268 + i] as const),
];

/** The memory type of a guest-physical address by the MTRRs that `msr` reads. */
export function mtrrType(msr: (index: number) => bigint, gpa: number): number {
  const settings = msr(MSR_DEFAULT_TYPE);
  if ((settings & ENABLED) === 0n) return UNCACHEABLE;
  if (gpa < 0x100000 && (settings & FIXED_ENABLED) !== 0n) return fixedType(msr, gpa);
  return variableType(msr, gpa) ?? Number(settings & TYPE_MASK);
}

function fixedType(msr: (index: number) => bigint, gpa: number): number {
  const range = FIXED_RANGES.findLast(([start]) => gpa >= start)!;
  const part = Math.floor((gpa - range[0]) / range[1]);
  return Number((msr(range[2]) >> BigInt(8 * part)) & TYPE_MASK);
}

/** Of overlapping ranges uncacheable wins, then write-through over write-back; the rest is not defined. */
function variableType(msr: (index: number) => bigint, gpa: number): number | undefined {
  let type: number | undefined;
  for (let i = 0; i < VARIABLE_RANGES; i++) {
    const base = msr(MSR_VARIABLE + 2 * i);
    const mask = msr(MSR_VARIABLE + 2 * i + 1);
    const bits = mask & PAGE_MASK;
    if ((mask & VALID) === 0n || (BigInt(gpa) & bits) !== (base & bits)) continue;
    const own = Number(base & TYPE_MASK);
    if (own === UNCACHEABLE) return UNCACHEABLE;
    if (type === undefined || type === own) type = own;
    else if (type + own === WRITE_THROUGH + WRITE_BACK) type = WRITE_THROUGH;
    else return WRITE_BACK;
  }
  return type;
}

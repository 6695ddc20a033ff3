import { CR0, EFER } from './constants.ts';
import type { Cpu } from './cpu.ts';
import { FS_BASE, GS_BASE } from './slots.ts';
import { highHalf, isCanonical, join64, lowHalf } from './wide.ts';

export const MSR = {
  TSC: 0x10,
  APIC_BASE: 0x1b,
  BIOS_SIGN_ID: 0x8b,
  MTRR_CAP: 0xfe,
  MISC_FEATURES_ENABLES: 0x140,
  SYSENTER_CS: 0x174,
  SYSENTER_ESP: 0x175,
  SYSENTER_EIP: 0x176,
  MISC_ENABLE: 0x1a0,
  MTRR_BASE0: 0x200,
  MTRR_FIX64K: 0x250,
  MTRR_FIX16K: 0x258,
  MTRR_FIX4K: 0x268,
  PAT: 0x277,
  MTRR_DEFAULT: 0x2ff,
  X2APIC: 0x800,
  EFER: 0xc000_0080,
  STAR: 0xc000_0081,
  LSTAR: 0xc000_0082,
  CSTAR: 0xc000_0083,
  FMASK: 0xc000_0084,
  FS_BASE: 0xc000_0100,
  GS_BASE: 0xc000_0101,
  KERNEL_GS_BASE: 0xc000_0102,
  TSC_AUX: 0xc000_0103,
} as const;

/** Variable MTRRs: pairs of base and mask from MTRR_BASE0 on. */
const VARIABLE_MTRRS = 8;
const APIC_ADDRESS = 0xfee0_0000;
const APIC_ENABLED = 0x800;
const APIC_X2 = 0x400;
const APIC_BOOT = 0x100;

/** What an MSR accepts: a value that fits, canonical, any. */
type Check = (lo: number, hi: number) => boolean;

const any: Check = () => true;
const canonical: Check = (_lo, hi) => isCanonical(hi);
const low32: Check = (_lo, hi) => hi === 0;
const readOnly: Check = () => false;
const bits =
  (mask: number): Check =>
  (lo, hi) =>
    hi === 0 && (lo & ~mask) === 0;
/** Eight memory types, one a byte. */
const memoryTypes = (valid: readonly number[]): Check => {
  const fits = (word: number) => [0, 8, 16, 24].every((shift) => valid.includes((word >>> shift) & 0xff));
  return (lo, hi) => fits(lo) && fits(hi);
};
const patTypes = memoryTypes([0, 1, 4, 5, 6, 7]);
const mtrrTypes = memoryTypes([0, 1, 4, 5, 6]);

interface PlainMsr {
  readonly index: number;
  readonly lo: number;
  readonly hi: number;
  readonly accepts: Check;
}

const plain = (index: number, lo: number, hi: number, accepts: Check): PlainMsr => ({
  index,
  lo,
  hi,
  accepts,
});

/** MSRs that are just stored, with their values after reset. The others have code of their own below. */
const PLAIN: readonly PlainMsr[] = [
  plain(MSR.BIOS_SIGN_ID, 0, 0, any),
  plain(MSR.MTRR_CAP, VARIABLE_MTRRS | 0x500, 0, readOnly),
  plain(MSR.MISC_FEATURES_ENABLES, 0, 0, bits(1)),
  plain(MSR.SYSENTER_CS, 0, 0, low32),
  plain(MSR.SYSENTER_ESP, 0, 0, canonical),
  plain(MSR.SYSENTER_EIP, 0, 0, canonical),
  plain(MSR.MISC_ENABLE, 1, 0, low32),
  plain(MSR.PAT, 0x0007_0406, 0x0007_0406, patTypes),
  plain(MSR.MTRR_DEFAULT, 0xc06, 0, bits(0xcff)),
  plain(MSR.MTRR_FIX64K, 0x0606_0606, 0x0606_0606, mtrrTypes),
  ...[0, 1].map((i) => plain(MSR.MTRR_FIX16K + i, 0x0606_0606, 0x0606_0606, mtrrTypes)),
  ...Array.from({ length: 8 }, (_, i) => plain(MSR.MTRR_FIX4K + i, 0x0606_0606, 0x0606_0606, mtrrTypes)),
  ...Array.from({ length: 2 * VARIABLE_MTRRS }, (_, i) =>
    plain(MSR.MTRR_BASE0 + i, 0, 0, (_lo, hi) => (hi & ~0xff) === 0),
  ),
  plain(MSR.TSC_AUX, 0, 0, low32),
];

const plainPosition = new Map(PLAIN.map((msr, position) => [msr.index, position]));

/** The model-specific registers of one processor. */
export class Msrs {
  readonly #cpu: Cpu;
  readonly #values = new Int32Array(2 * PLAIN.length);
  starLo = 0;
  starHi = 0;
  lstarLo = 0;
  lstarHi = 0;
  cstarLo = 0;
  cstarHi = 0;
  fmaskLo = 0;
  kernelGsLo = 0;
  kernelGsHi = 0;

  constructor(cpu: Cpu) {
    this.#cpu = cpu;
  }

  reset(): void {
    PLAIN.forEach((msr, i) => {
      this.#values[2 * i] = msr.lo;
      this.#values[2 * i + 1] = msr.hi;
    });
    this.starLo = this.starHi = this.lstarLo = this.lstarHi = this.cstarLo = this.cstarHi = 0;
    this.fmaskLo = this.kernelGsLo = this.kernelGsHi = 0;
  }

  /** The low half, with the high half in cpu.hi; undefined when there is no such MSR. */
  read(index: number): number | undefined {
    const c = this.#cpu;
    const two = (lo: number, hi: number) => {
      c.hi = hi;
      return lo;
    };
    switch (index) {
      case MSR.TSC:
        return two(c.clock.tscLow(), c.clock.tscHigh());
      case MSR.APIC_BASE:
        return two(APIC_ADDRESS | APIC_ENABLED | APIC_X2 | (c.index === 0 ? APIC_BOOT : 0), 0);
      case MSR.EFER:
        return two(c.efer, 0);
      case MSR.STAR:
        return two(this.starLo, this.starHi);
      case MSR.LSTAR:
        return two(this.lstarLo, this.lstarHi);
      case MSR.CSTAR:
        return two(this.cstarLo, this.cstarHi);
      case MSR.FMASK:
        return two(this.fmaskLo, 0);
      case MSR.FS_BASE:
        return two(c.r[FS_BASE]!, c.r[FS_BASE + 1]!);
      case MSR.GS_BASE:
        return two(c.r[GS_BASE]!, c.r[GS_BASE + 1]!);
      case MSR.KERNEL_GS_BASE:
        return two(this.kernelGsLo, this.kernelGsHi);
    }
    if (index >= MSR.X2APIC && index <= MSR.X2APIC + 0xff) {
      c.hi = 0;
      return c.apic.read(index - MSR.X2APIC);
    }
    const position = plainPosition.get(index);
    if (position === undefined) return undefined;
    return two(this.#values[2 * position]!, this.#values[2 * position + 1]!);
  }

  /** Whether the guest may store the value; #GP otherwise. */
  accepts(index: number, lo: number, hi: number): boolean {
    const c = this.#cpu;
    switch (index) {
      case MSR.TSC:
      case MSR.STAR:
        return true;
      case MSR.APIC_BASE:
        return this.read(index) === lo && hi === 0;
      case MSR.EFER: {
        const known = EFER.SCE | EFER.LME | EFER.LMA | EFER.NXE;
        const changesMode = ((lo ^ c.efer) & EFER.LME) !== 0 && (c.cr0 & CR0.PG) !== 0;
        return hi === 0 && (lo & ~known) === 0 && !changesMode;
      }
      case MSR.LSTAR:
      case MSR.CSTAR:
      case MSR.FS_BASE:
      case MSR.GS_BASE:
      case MSR.KERNEL_GS_BASE:
        return canonical(lo, hi);
      case MSR.FMASK:
        return hi === 0;
    }
    if (index >= MSR.X2APIC && index <= MSR.X2APIC + 0xff) return c.apic.accepts(index - MSR.X2APIC);
    const position = plainPosition.get(index);
    return position !== undefined && PLAIN[position]!.accepts(lo, hi);
  }

  /** Stores an accepted value. */
  write(index: number, lo: number, hi: number): void {
    const c = this.#cpu;
    c.systemEpoch++;
    switch (index) {
      case MSR.TSC:
        c.clock.setTsc(join64(lo, hi));
        return;
      case MSR.APIC_BASE:
        return;
      case MSR.EFER:
        c.efer = (lo & ~EFER.LMA) | (c.efer & EFER.LMA);
        c.flush();
        return;
      case MSR.STAR:
        this.starLo = lo;
        this.starHi = hi;
        return;
      case MSR.LSTAR:
        this.lstarLo = lo;
        this.lstarHi = hi;
        return;
      case MSR.CSTAR:
        this.cstarLo = lo;
        this.cstarHi = hi;
        return;
      case MSR.FMASK:
        this.fmaskLo = lo;
        return;
      case MSR.FS_BASE:
        c.r[FS_BASE] = lo;
        c.r[FS_BASE + 1] = hi;
        return;
      case MSR.GS_BASE:
        c.r[GS_BASE] = lo;
        c.r[GS_BASE + 1] = hi;
        return;
      case MSR.KERNEL_GS_BASE:
        this.kernelGsLo = lo;
        this.kernelGsHi = hi;
        return;
    }
    if (index >= MSR.X2APIC && index <= MSR.X2APIC + 0xff) {
      c.apic.write(index - MSR.X2APIC, lo, hi);
      c.updateInterrupt();
      return;
    }
    const position = plainPosition.get(index)!;
    this.#values[2 * position] = lo;
    this.#values[2 * position + 1] = hi;
  }

  /** For readers outside the guest. */
  get(index: number): bigint | undefined {
    const lo = this.read(index);
    return lo === undefined ? undefined : join64(lo, this.#cpu.hi);
  }

  /** For writers outside the guest. False when there is no such MSR or the value does not fit. */
  set(index: number, value: bigint): boolean {
    const lo = lowHalf(value);
    const hi = highHalf(value);
    if (!this.accepts(index, lo, hi)) return false;
    this.write(index, lo, hi);
    return true;
  }
}

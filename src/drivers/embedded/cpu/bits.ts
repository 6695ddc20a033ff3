import type { Cpu } from './cpu.ts';
import { modify16, modify32, modify64, read16, read32, store16, store32, store64 } from './mmu.ts';
import type { ExtendForms } from './move.ts';
import type { Op, Run } from './op.ts';
import { address, load16, load32, load64 } from './operand.ts';
import { undefinedOpcode } from './raise.ts';

const undefinedSize: Run = (c) => undefinedOpcode(c);

/** What BTS, BTR and BTC do with the bit; BT does nothing. */
type BitChange = ((value: number, mask: number) => number) | undefined;

/** By the encoding of the four instructions. */
export const BIT_CHANGES: readonly BitChange[] = [
  undefined,
  (value, mask) => value | mask,
  (value, mask) => value & ~mask,
  (value, mask) => value ^ mask,
];

/** BT, BTS, BTR and BTC; the bit number is in op.src, or the immediate. */
export function bitForms(change: BitChange, immediate: boolean): ExtendForms {
  const number = (c: Cpu, op: Op) => (immediate ? op.imm : c.r[op.src]!);
  /** One 32-bit half of a register. */
  const inHalf = (c: Cpu, at: number, bit: number) => {
    const value = c.r[at]!;
    c.cf = (value >>> bit) & 1;
    if (change) c.r[at] = change(value, 1 << bit);
  };
  return {
    register: {
      b: undefinedSize,
      w: (c, op) => {
        const bit = (immediate ? op.imm : c.r16[op.src]!) & 15;
        const value = c.r16[op.dst]!;
        c.cf = (value >>> bit) & 1;
        if (change) c.r16[op.dst] = change(value, 1 << bit);
      },
      d: (c, op) => {
        inHalf(c, op.dst, number(c, op) & 31);
        if (change) c.r[op.dst + 1] = 0;
      },
      q: (c, op) => {
        const bit = number(c, op) & 63;
        inHalf(c, op.dst + (bit >>> 5), bit & 31);
      },
    },
    memory: {
      b: undefinedSize,
      w: (c, op) => {
        address(c, op);
        const bit = immediate ? op.imm & 15 : (c.r16[op.src]! << 16) >> 16;
        moveByBytes(c, (bit >> 4) * 2, bit >> 31);
        const value = change ? modify16(c) : read16(c, c.eaLo, c.eaHi);
        c.cf = (value >>> (bit & 15)) & 1;
        if (change) store16(c, change(value, 1 << (bit & 15)));
      },
      d: (c, op) => {
        address(c, op);
        const bit = immediate ? op.imm & 31 : c.r[op.src]!;
        moveByBytes(c, (bit >> 5) * 4, bit >> 31);
        dwordInMemory(c, bit);
      },
      // The bit is in one half of the operand; only that half is accessed.
      q: (c, op) => {
        address(c, op);
        const bit = immediate ? op.imm & 63 : c.r[op.src]!;
        const high = immediate ? 0 : c.r[op.src + 1]!;
        moveByBytes(c, ((bit >>> 5) | (high << 27)) << 2, high >> 3);
        dwordInMemory(c, bit);
      },
    },
  };

  function dwordInMemory(c: Cpu, bit: number): void {
    const value = change ? modify32(c) : read32(c, c.eaLo, c.eaHi);
    c.cf = (value >>> (bit & 31)) & 1;
    if (change) store32(c, change(value, 1 << (bit & 31)));
  }
}

/** Adds a signed 64-bit number of bytes to the effective address. */
function moveByBytes(c: Cpu, lo: number, hi: number): void {
  const sum = (c.eaLo + lo) | 0;
  c.eaHi = (c.eaHi + hi + (sum >>> 0 < lo >>> 0 ? 1 : 0)) | 0;
  c.eaLo = sum;
}

/** The number of a bit of a 64-bit value, or -1 when the value is 0. */
type Search = (lo: number, hi: number, width: number) => number;

const lowest32 = (x: number) => 31 - Math.clz32(x & -x);
const lowestBit: Search = (lo, hi) => (lo !== 0 ? lowest32(lo) : hi !== 0 ? 32 + lowest32(hi) : -1);
const highestBit: Search = (lo, hi) => (hi !== 0 ? 63 - Math.clz32(hi) : lo !== 0 ? 31 - Math.clz32(lo) : -1);

function population(x: number): number {
  let v = x - ((x >>> 1) & 0x55555555);
  v = (v & 0x33333333) + ((v >>> 2) & 0x33333333);
  return Math.imul((v + (v >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}

/** What a scan does to the flags and to the destination; undefined leaves the value in the destination. */
type Scan = (c: Cpu, lo: number, hi: number, width: number) => number | undefined;

/** BSF and BSR: ZF says that the operand was 0, and the destination is unchanged then. */
const scan =
  (search: Search): Scan =>
  (c, lo, hi, width) => {
    const found = search(lo, hi, width);
    c.zr = found < 0 ? 0 : 1;
    return found < 0 ? undefined : found;
  };

/** TZCNT and LZCNT: CF says that the operand was 0, ZF that the result is. */
const count =
  (search: Search): Scan =>
  (c, lo, hi, width) => {
    const result = search(lo, hi, width);
    c.cf = (lo | hi) === 0 ? 1 : 0;
    c.zr = result;
    return result;
  };

/** A scan as an instruction with a source in a register or memory. */
function scanForms(run: Scan): ExtendForms {
  const d = (c: Cpu, op: Op, value: number) => {
    c.r[op.dst] = run(c, value, 0, 32) ?? c.r[op.dst]!;
    c.r[op.dst + 1] = 0;
  };
  const q = (c: Cpu, op: Op, lo: number, hi: number) => {
    const result = run(c, lo, hi, 64);
    if (result === undefined) return;
    c.r[op.dst] = result;
    c.r[op.dst + 1] = 0;
  };
  const w = (c: Cpu, op: Op, value: number) => {
    const result = run(c, value & 0xffff, 0, 16);
    if (result !== undefined) c.r16[op.dst] = result;
  };
  return {
    register: {
      b: undefinedSize,
      w: (c, op) => w(c, op, c.r16[op.src]!),
      d: (c, op) => d(c, op, c.r[op.src]!),
      q: (c, op) => q(c, op, c.r[op.src]!, c.r[op.src + 1]!),
    },
    memory: {
      b: undefinedSize,
      w: (c, op) => w(c, op, load16(c, op)),
      d: (c, op) => d(c, op, load32(c, op)),
      q: (c, op) => {
        const lo = load64(c, op);
        q(c, op, lo, c.hi);
      },
    },
  };
}

export const BSF = scanForms(scan(lowestBit));
export const BSR = scanForms(scan(highestBit));
export const TZCNT = scanForms(
  count((lo, hi, width) => {
    const found = lowestBit(lo, hi, width);
    return found < 0 ? width : found;
  }),
);
export const LZCNT = scanForms(count((lo, hi, width) => width - 1 - highestBit(lo, hi, width)));
export const POPCNT = scanForms((c, lo, hi) => {
  const result = population(lo) + population(hi);
  c.cf = c.or = c.ar = c.sr = 0;
  c.pr = 1;
  c.zr = result;
  return result;
});

/** A double shift of one operand size: `count` is masked. */
interface DoubleShift {
  w(c: Cpu, a: number, b: number, count: number): number;
  d(c: Cpu, a: number, b: number, count: number): number;
  q(c: Cpu, al: number, ah: number, bl: number, bh: number, count: number): number;
}

/** SHLD and SHRD, by where the destination is; `amount` gives the count before it is masked. */
export function doubleShiftForms(shift: DoubleShift, amount: (c: Cpu, op: Op) => number): ExtendForms {
  return {
    register: {
      b: undefinedSize,
      w: (c, op) => {
        c.r16[op.dst] = shift.w(c, c.r16[op.dst]!, c.r16[op.src]!, amount(c, op) & 31);
      },
      d: (c, op) => {
        c.r[op.dst] = shift.d(c, c.r[op.dst]!, c.r[op.src]!, amount(c, op) & 31);
        c.r[op.dst + 1] = 0;
      },
      q: (c, op) => {
        const { r } = c;
        const by = amount(c, op) & 63;
        r[op.dst] = shift.q(c, r[op.dst]!, r[op.dst + 1]!, r[op.src]!, r[op.src + 1]!, by);
        r[op.dst + 1] = c.hi;
      },
    },
    memory: {
      b: undefinedSize,
      w: (c, op) => {
        address(c, op);
        const value = modify16(c);
        store16(c, shift.w(c, value, c.r16[op.src]!, amount(c, op) & 31));
      },
      d: (c, op) => {
        address(c, op);
        const value = modify32(c);
        store32(c, shift.d(c, value, c.r[op.src]!, amount(c, op) & 31));
      },
      q: (c, op) => {
        address(c, op);
        const lo = modify64(c);
        const result = shift.q(c, lo, c.hi, c.r[op.src]!, c.r[op.src + 1]!, amount(c, op) & 63);
        store64(c, result, c.hi);
      },
    },
  };
}

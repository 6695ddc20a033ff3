import { VECTOR } from '../../../abi/x86.ts';
import type { Cpu } from './cpu.ts';
import type { Op, SizedRun } from './op.ts';
import { load8, load16, load32, load64 } from './operand.ts';
import { raise } from './raise.ts';
import { RAX, RDX } from './slots.ts';
import { highHalf, join64, lowHalf } from './wide.ts';

const AH = 1;
const DX = 2 * RDX;

/** High 32 bits of the unsigned product of two 32-bit numbers. */
function highProduct(a: number, b: number): number {
  const al = a & 0xffff;
  const ah = a >>> 16;
  const bl = b & 0xffff;
  const bh = b >>> 16;
  const middle = ah * bl + ((al * bl) >>> 16);
  return (ah * bh + (middle >>> 16) + ((al * bh + (middle & 0xffff)) >>> 16)) | 0;
}

/** The 128-bit product, four words from the lowest. */
const wide = new Int32Array(4);

function multiply64(al: number, ah: number, bl: number, bh: number, signed: boolean): void {
  const word1 = (highProduct(al, bl) >>> 0) + (Math.imul(al, bh) >>> 0) + (Math.imul(ah, bl) >>> 0);
  const word2 =
    (highProduct(al, bh) >>> 0) +
    (highProduct(ah, bl) >>> 0) +
    (Math.imul(ah, bh) >>> 0) +
    Math.floor(word1 / 2 ** 32);
  let high2 = word2 | 0;
  let high3 = (highProduct(ah, bh) + Math.floor(word2 / 2 ** 32)) | 0;
  if (signed && ah < 0) {
    high3 = (high3 - bh - (high2 >>> 0 < bl >>> 0 ? 1 : 0)) | 0;
    high2 = (high2 - bl) | 0;
  }
  if (signed && bh < 0) {
    high3 = (high3 - ah - (high2 >>> 0 < al >>> 0 ? 1 : 0)) | 0;
    high2 = (high2 - al) | 0;
  }
  wide[0] = Math.imul(al, bl);
  wide[1] = word1;
  wide[2] = high2;
  wide[3] = high3;
}

/** CF and OF say whether the product needs its upper half; the other flags are undefined. */
function productFlags(c: Cpu, overflow: boolean, lo: number, sign: number): void {
  c.cf = overflow ? 1 : 0;
  c.or = overflow ? -1 : 0;
  c.ar = 0;
  c.zr = 1;
  c.sr = sign;
  c.pr = lo;
}

/** What an instruction of rax, rdx and one more operand does with that operand, by its size. */
interface Source {
  b(c: Cpu, a: number): void;
  w(c: Cpu, a: number): void;
  d(c: Cpu, a: number): void;
  q(c: Cpu, lo: number, hi: number): void;
}

/** MUL and IMUL with one operand: rdx:rax = rax * operand. */
function widening(signed: boolean): Source {
  return {
    b: (c, value) => {
      const al = c.r8[0]!;
      const product = signed ? ((al << 24) >> 24) * ((value << 24) >> 24) : al * (value & 0xff);
      c.r16[RAX] = product;
      productFlags(c, signed ? product !== (product << 24) >> 24 : product > 0xff, product, product << 24);
    },
    w: (c, value) => {
      const ax = c.r16[RAX]!;
      const product = signed ? ((ax << 16) >> 16) * ((value << 16) >> 16) : ax * (value & 0xffff);
      c.r16[RAX] = product;
      c.r16[DX] = product >> 16;
      productFlags(c, signed ? product !== (product << 16) >> 16 : product > 0xffff, product, product << 16);
    },
    d: (c, value) => {
      const { r } = c;
      const eax = r[RAX]!;
      const lo = Math.imul(eax, value);
      let hi = highProduct(eax, value);
      if (signed) hi = (hi - (eax < 0 ? value : 0) - (value < 0 ? eax : 0)) | 0;
      r[RAX] = lo;
      r[RAX + 1] = 0;
      r[RDX] = hi;
      r[RDX + 1] = 0;
      productFlags(c, signed ? hi !== lo >> 31 : hi !== 0, lo, lo);
    },
    q: (c, lo, hi) => {
      const { r } = c;
      multiply64(r[RAX]!, r[RAX + 1]!, lo, hi, signed);
      r[RAX] = wide[0]!;
      r[RAX + 1] = wide[1]!;
      r[RDX] = wide[2]!;
      r[RDX + 1] = wide[3]!;
      const extension = signed ? wide[1]! >> 31 : 0;
      productFlags(c, wide[2] !== extension || wide[3] !== extension, wide[0]!, wide[1]!);
    },
  };
}

/** Signed product that fits the operand size or sets CF and OF: IMUL with two or three operands. */
function imul16(c: Cpu, a: number, b: number): number {
  const product = ((a << 16) >> 16) * ((b << 16) >> 16);
  productFlags(c, product !== (product << 16) >> 16, product, product << 16);
  return product;
}

function imul32(c: Cpu, a: number, b: number): number {
  const lo = Math.imul(a, b);
  productFlags(c, a * b !== lo, lo, lo);
  return lo;
}

function imul64(c: Cpu, al: number, ah: number, bl: number, bh: number): number {
  if (ah === al >> 31 && bh === bl >> 31) {
    const lo = Math.imul(al, bl);
    const hi = (highProduct(al, bl) - (al < 0 ? bl : 0) - (bl < 0 ? al : 0)) | 0;
    productFlags(c, false, lo, hi);
    c.hi = hi;
    return lo;
  }
  multiply64(al, ah, bl, bh, true);
  const sign = wide[1]! >> 31;
  productFlags(c, wide[2] !== sign || wide[3] !== sign, wide[0]!, wide[1]!);
  c.hi = wide[1]!;
  return wide[0]!;
}

function divideError(c: Cpu): never {
  raise(c, VECTOR.DE);
}

/** DIV and IDIV. The results are checked before a register changes. */
function dividing(signed: boolean): Source {
  /** Divides within 32 bits (or 2^53 for unsigned ones) and puts the results where `store` says. */
  const small = (c: Cpu, dividend: number, divisor: number, bits: number): number => {
    if (divisor === 0) divideError(c);
    const quotient = Math.trunc(dividend / divisor);
    const limit = 2 ** (signed ? bits - 1 : bits);
    if (quotient >= limit || quotient < (signed ? -limit : 0)) divideError(c);
    return quotient;
  };
  const big = (c: Cpu, dividend: bigint, divisor: bigint, bits: number): bigint => {
    if (divisor === 0n) divideError(c);
    const quotient = dividend / divisor;
    const fits = signed ? BigInt.asIntN(bits, quotient) : BigInt.asUintN(bits, quotient);
    if (fits !== quotient) divideError(c);
    return quotient;
  };
  return {
    b: (c, value) => {
      const divisor = signed ? (value << 24) >> 24 : value & 0xff;
      const dividend = signed ? (c.r16[RAX]! << 16) >> 16 : c.r16[RAX]!;
      const quotient = small(c, dividend, divisor, 8);
      c.r8[0] = quotient;
      c.r8[AH] = dividend - quotient * divisor;
    },
    w: (c, value) => {
      const divisor = signed ? (value << 16) >> 16 : value & 0xffff;
      const both = (c.r16[DX]! << 16) | c.r16[RAX]!;
      const dividend = signed ? both : both >>> 0;
      const quotient = small(c, dividend, divisor, 16);
      c.r16[RAX] = quotient;
      c.r16[DX] = dividend - quotient * divisor;
    },
    d: (c, value) => {
      const { r } = c;
      const divisor = signed ? value : value >>> 0;
      const high = signed ? r[RDX]! : r[RDX]! >>> 0;
      let quotient: number;
      let remainder: number;
      if (high < 0x20_0000 && high >= -0x20_0000) {
        const dividend = high * 2 ** 32 + (r[RAX]! >>> 0);
        quotient = small(c, dividend, divisor, 32);
        remainder = dividend - quotient * divisor;
      } else {
        const dividend = (BigInt(high) << 32n) | BigInt(r[RAX]! >>> 0);
        const exact = big(c, dividend, BigInt(divisor), 32);
        quotient = Number(exact);
        remainder = Number(dividend - exact * BigInt(divisor));
      }
      r[RAX] = quotient;
      r[RAX + 1] = 0;
      r[RDX] = remainder;
      r[RDX + 1] = 0;
    },
    q: (c, lo, hi) => {
      const { r } = c;
      const sign = signed ? (v: bigint) => BigInt.asIntN(64, v) : (v: bigint) => v;
      const divisor = sign(join64(lo, hi));
      const dividend = (sign(join64(r[RDX]!, r[RDX + 1]!)) << 64n) | join64(r[RAX]!, r[RAX + 1]!);
      const quotient = big(c, dividend, divisor, 64);
      const remainder = dividend - quotient * divisor;
      r[RAX] = lowHalf(quotient);
      r[RAX + 1] = highHalf(quotient);
      r[RDX] = lowHalf(remainder);
      r[RDX + 1] = highHalf(remainder);
    },
  };
}

/** An instruction that works on rax, rdx and one more operand, by where that operand is. */
function forms({ b, w, d, q }: Source): { register: SizedRun; memory: SizedRun } {
  return {
    register: {
      b: (c, op) => b(c, c.r8[op.dst]!),
      w: (c, op) => w(c, c.r16[op.dst]!),
      d: (c, op) => d(c, c.r[op.dst]!),
      q: (c, op) => q(c, c.r[op.dst]!, c.r[op.dst + 1]!),
    },
    memory: {
      b: (c, op) => b(c, load8(c, op)),
      w: (c, op) => w(c, load16(c, op)),
      d: (c, op) => d(c, load32(c, op)),
      q: (c, op) => {
        const lo = load64(c, op);
        q(c, lo, c.hi);
      },
    },
  };
}

export const MUL = forms(widening(false));
export const IMUL = forms(widening(true));
export const DIV = forms(dividing(false));
export const IDIV = forms(dividing(true));

/** IMUL reg, operand and IMUL reg, operand, immediate: the operand is op.src or memory. */
export function imulForms(immediate: boolean): { register: SizedRun; memory: SizedRun } {
  const other = (c: Cpu, op: Op) => (immediate ? op.imm : c.r16[op.dst]!);
  const put16 = (c: Cpu, op: Op, value: number) => {
    c.r16[op.dst] = imul16(c, value, other(c, op));
  };
  const put32 = (c: Cpu, op: Op, value: number) => {
    c.r[op.dst] = imul32(c, value, immediate ? op.imm : c.r[op.dst]!);
    c.r[op.dst + 1] = 0;
  };
  const put64 = (c: Cpu, op: Op, lo: number, hi: number) => {
    const { r } = c;
    r[op.dst] = immediate
      ? imul64(c, lo, hi, op.imm, op.immHi)
      : imul64(c, lo, hi, r[op.dst]!, r[op.dst + 1]!);
    r[op.dst + 1] = c.hi;
  };
  return {
    register: {
      b: (c) => raise(c, VECTOR.UD),
      w: (c, op) => put16(c, op, c.r16[op.src]!),
      d: (c, op) => put32(c, op, c.r[op.src]!),
      q: (c, op) => put64(c, op, c.r[op.src]!, c.r[op.src + 1]!),
    },
    memory: {
      b: (c) => raise(c, VECTOR.UD),
      w: (c, op) => put16(c, op, load16(c, op)),
      d: (c, op) => put32(c, op, load32(c, op)),
      q: (c, op) => {
        const lo = load64(c, op);
        put64(c, op, lo, c.hi);
      },
    },
  };
}

import type { Cpu } from './cpu.ts';

/*
 * Arithmetic and its flags. Flags are kept as the numbers they are tests of: ZF is `zr === 0`, SF is `sr < 0`,
 * OF is `or < 0`, PF is the parity of the low byte of `pr`, AF is bit 4 of `ar`; CF is `cf`, 0 or 1.
 *
 * Operands of 8 and 16 bits are computed in the upper bits of an int32, where carry and sign fall out as for 32.
 * A 64-bit result is returned with its high half in `c.hi`.
 */

/** Operations of two operands, by their encoding. CMP is a subtraction and TEST an AND whose result is dropped. */
export const ALU = { add: 0, or: 1, adc: 2, sbb: 3, and: 4, sub: 5, xor: 6 } as const;

/** Operations of one operand. */
export const UNARY = { not: 0, neg: 1, inc: 2, dec: 3 } as const;

function add32(c: Cpu, a: number, b: number): number {
  const x = (a + b) | 0;
  c.cf = x >>> 0 < a >>> 0 ? 1 : 0;
  c.or = (a ^ x) & (b ^ x);
  c.ar = a ^ b ^ x;
  c.zr = x;
  c.sr = x;
  c.pr = x;
  return x;
}

function addNarrow(c: Cpu, a: number, b: number, shift: number, carry: number): number {
  const sum = (a << shift) + (b << shift) + (carry << shift);
  const x = sum | 0;
  const result = x >> shift;
  const mask = -1 >>> shift;
  c.cf = (a & mask) + (b & mask) + carry > mask ? 1 : 0;
  c.or = ((a << shift) ^ x) & ((b << shift) ^ x);
  c.ar = a ^ b ^ result;
  c.zr = x;
  c.sr = x;
  c.pr = result;
  return result;
}

function add64(c: Cpu, al: number, ah: number, bl: number, bh: number): number {
  const lo = (al + bl) | 0;
  const hi = (ah + bh + (lo >>> 0 < al >>> 0 ? 1 : 0)) | 0;
  c.cf = ((ah & bh) | ((ah | bh) & ~hi)) >>> 31;
  c.or = (ah ^ hi) & (bh ^ hi);
  c.ar = al ^ bl ^ lo;
  c.zr = lo | hi;
  c.sr = hi;
  c.pr = lo;
  c.hi = hi;
  return lo;
}

function adc32(c: Cpu, a: number, b: number): number {
  const x = (a + b + c.cf) | 0;
  c.cf = ((a & b) | ((a | b) & ~x)) >>> 31;
  c.or = (a ^ x) & (b ^ x);
  c.ar = a ^ b ^ x;
  c.zr = x;
  c.sr = x;
  c.pr = x;
  return x;
}

function adc64(c: Cpu, al: number, ah: number, bl: number, bh: number): number {
  const lo = (al + bl + c.cf) | 0;
  const carry = ((al & bl) | ((al | bl) & ~lo)) >>> 31;
  const hi = (ah + bh + carry) | 0;
  c.cf = ((ah & bh) | ((ah | bh) & ~hi)) >>> 31;
  c.or = (ah ^ hi) & (bh ^ hi);
  c.ar = al ^ bl ^ lo;
  c.zr = lo | hi;
  c.sr = hi;
  c.pr = lo;
  c.hi = hi;
  return lo;
}

function sub32(c: Cpu, a: number, b: number): number {
  const x = (a - b) | 0;
  c.cf = a >>> 0 < b >>> 0 ? 1 : 0;
  c.or = (a ^ b) & (a ^ x);
  c.ar = a ^ b ^ x;
  c.zr = x;
  c.sr = x;
  c.pr = x;
  return x;
}

function subNarrow(c: Cpu, a: number, b: number, shift: number, borrow: number): number {
  const x = ((a << shift) - (b << shift) - (borrow << shift)) | 0;
  const result = x >> shift;
  const mask = -1 >>> shift;
  c.cf = (a & mask) < (b & mask) + borrow ? 1 : 0;
  c.or = ((a << shift) ^ (b << shift)) & ((a << shift) ^ x);
  c.ar = a ^ b ^ result;
  c.zr = x;
  c.sr = x;
  c.pr = result;
  return result;
}

function sub64(c: Cpu, al: number, ah: number, bl: number, bh: number): number {
  const lo = (al - bl) | 0;
  const hi = (ah - bh - (al >>> 0 < bl >>> 0 ? 1 : 0)) | 0;
  c.cf = ((~ah & bh) | ((~ah | bh) & hi)) >>> 31;
  c.or = (ah ^ bh) & (ah ^ hi);
  c.ar = al ^ bl ^ lo;
  c.zr = lo | hi;
  c.sr = hi;
  c.pr = lo;
  c.hi = hi;
  return lo;
}

function sbb32(c: Cpu, a: number, b: number): number {
  const x = (a - b - c.cf) | 0;
  c.cf = ((~a & b) | ((~a | b) & x)) >>> 31;
  c.or = (a ^ b) & (a ^ x);
  c.ar = a ^ b ^ x;
  c.zr = x;
  c.sr = x;
  c.pr = x;
  return x;
}

function sbb64(c: Cpu, al: number, ah: number, bl: number, bh: number): number {
  const lo = (al - bl - c.cf) | 0;
  const borrow = ((~al & bl) | ((~al | bl) & lo)) >>> 31;
  const hi = (ah - bh - borrow) | 0;
  c.cf = ((~ah & bh) | ((~ah | bh) & hi)) >>> 31;
  c.or = (ah ^ bh) & (ah ^ hi);
  c.ar = al ^ bl ^ lo;
  c.zr = lo | hi;
  c.sr = hi;
  c.pr = lo;
  c.hi = hi;
  return lo;
}

/** Flags of a logical result whose sign is the sign of `x`; AF, undefined by the architecture, is cleared. */
function logic(c: Cpu, x: number): number {
  c.cf = 0;
  c.or = 0;
  c.ar = 0;
  c.zr = x;
  c.sr = x;
  c.pr = x;
  return x;
}

function logic64(c: Cpu, lo: number, hi: number): number {
  c.cf = 0;
  c.or = 0;
  c.ar = 0;
  c.zr = lo | hi;
  c.sr = hi;
  c.pr = lo;
  c.hi = hi;
  return lo;
}

const sign8 = (x: number) => (x << 24) >> 24;
const sign16 = (x: number) => (x << 16) >> 16;

/** `a op b` of 8 bits; the upper bits of the operands and of the result mean nothing. */
export function compute8(c: Cpu, operation: number, a: number, b: number): number {
  switch (operation) {
    case ALU.add:
      return addNarrow(c, a, b, 24, 0);
    case ALU.or:
      return logic(c, sign8(a | b));
    case ALU.adc:
      return addNarrow(c, a, b, 24, c.cf);
    case ALU.sbb:
      return subNarrow(c, a, b, 24, c.cf);
    case ALU.and:
      return logic(c, sign8(a & b));
    case ALU.sub:
      return subNarrow(c, a, b, 24, 0);
    default:
      return logic(c, sign8(a ^ b));
  }
}

/** The same of 16 bits. */
export function compute16(c: Cpu, operation: number, a: number, b: number): number {
  switch (operation) {
    case ALU.add:
      return addNarrow(c, a, b, 16, 0);
    case ALU.or:
      return logic(c, sign16(a | b));
    case ALU.adc:
      return addNarrow(c, a, b, 16, c.cf);
    case ALU.sbb:
      return subNarrow(c, a, b, 16, c.cf);
    case ALU.and:
      return logic(c, sign16(a & b));
    case ALU.sub:
      return subNarrow(c, a, b, 16, 0);
    default:
      return logic(c, sign16(a ^ b));
  }
}

/** The same of 32 bits. */
export function compute32(c: Cpu, operation: number, a: number, b: number): number {
  switch (operation) {
    case ALU.add:
      return add32(c, a, b);
    case ALU.or:
      return logic(c, a | b);
    case ALU.adc:
      return adc32(c, a, b);
    case ALU.sbb:
      return sbb32(c, a, b);
    case ALU.and:
      return logic(c, a & b);
    case ALU.sub:
      return sub32(c, a, b);
    default:
      return logic(c, a ^ b);
  }
}

/** The same of 64 bits, in halves. */
export function compute64(c: Cpu, operation: number, al: number, ah: number, bl: number, bh: number): number {
  switch (operation) {
    case ALU.add:
      return add64(c, al, ah, bl, bh);
    case ALU.or:
      return logic64(c, al | bl, ah | bh);
    case ALU.adc:
      return adc64(c, al, ah, bl, bh);
    case ALU.sbb:
      return sbb64(c, al, ah, bl, bh);
    case ALU.and:
      return logic64(c, al & bl, ah & bh);
    case ALU.sub:
      return sub64(c, al, ah, bl, bh);
    default:
      return logic64(c, al ^ bl, ah ^ bh);
  }
}

/** Operations of one operand. NOT sets no flags; INC and DEC leave CF alone. */
function unaryNarrow(c: Cpu, operation: number, a: number, shift: number): number {
  if (operation === UNARY.not) return ~a;
  if (operation === UNARY.neg) return subNarrow(c, 0, a, shift, 0);
  const { cf } = c;
  const x = operation === UNARY.inc ? addNarrow(c, a, 1, shift, 0) : subNarrow(c, a, 1, shift, 0);
  c.cf = cf;
  return x;
}

export function unary8(c: Cpu, operation: number, a: number): number {
  return unaryNarrow(c, operation, a, 24);
}

export function unary16(c: Cpu, operation: number, a: number): number {
  return unaryNarrow(c, operation, a, 16);
}

export function unary32(c: Cpu, operation: number, a: number): number {
  if (operation === UNARY.not) return ~a;
  if (operation === UNARY.neg) return sub32(c, 0, a);
  const { cf } = c;
  const x = operation === UNARY.inc ? add32(c, a, 1) : sub32(c, a, 1);
  c.cf = cf;
  return x;
}

export function unary64(c: Cpu, operation: number, al: number, ah: number): number {
  if (operation === UNARY.not) {
    c.hi = ~ah;
    return ~al;
  }
  if (operation === UNARY.neg) return sub64(c, 0, 0, al, ah);
  const { cf } = c;
  const lo = operation === UNARY.inc ? add64(c, al, ah, 1, 0) : sub64(c, al, ah, 1, 0);
  c.cf = cf;
  return lo;
}

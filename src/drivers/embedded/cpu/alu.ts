import type { Cpu } from './cpu.ts';

/*
 * Arithmetic and its flags. Flags are kept as the numbers they are tests of: ZF is `zr === 0`, SF is `sr < 0`,
 * OF is `or < 0`, PF is the parity of the low byte of `pr`, AF is bit 4 of `ar`; CF is `cf`, 0 or 1.
 *
 * Operands of 8 and 16 bits are computed in the upper bits of an int32, where carry and sign fall out as for 32.
 * A 64-bit result is returned with its high half in `c.hi`.
 */

/** Computes `a op b` for operands of 8, 16 or 32 bits. */
export type Binary = (c: Cpu, a: number, b: number) => number;
/** Computes `a op b` for 64 bits, given in halves. */
export type Binary64 = (c: Cpu, al: number, ah: number, bl: number, bh: number) => number;
export type Unary = (c: Cpu, a: number) => number;
export type Unary64 = (c: Cpu, al: number, ah: number) => number;

/** One operation in every operand size. */
export interface Sized<N, W> {
  readonly b: N;
  readonly w: N;
  readonly d: N;
  readonly q: W;
}

export function add32(c: Cpu, a: number, b: number): number {
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

export function add64(c: Cpu, al: number, ah: number, bl: number, bh: number): number {
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

export function sub32(c: Cpu, a: number, b: number): number {
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

export function sub64(c: Cpu, al: number, ah: number, bl: number, bh: number): number {
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

export const ADD: Sized<Binary, Binary64> = {
  b: (c, a, b) => addNarrow(c, a, b, 24, 0),
  w: (c, a, b) => addNarrow(c, a, b, 16, 0),
  d: add32,
  q: add64,
};
export const ADC: Sized<Binary, Binary64> = {
  b: (c, a, b) => addNarrow(c, a, b, 24, c.cf),
  w: (c, a, b) => addNarrow(c, a, b, 16, c.cf),
  d: adc32,
  q: adc64,
};
export const SUB: Sized<Binary, Binary64> = {
  b: (c, a, b) => subNarrow(c, a, b, 24, 0),
  w: (c, a, b) => subNarrow(c, a, b, 16, 0),
  d: sub32,
  q: sub64,
};
export const SBB: Sized<Binary, Binary64> = {
  b: (c, a, b) => subNarrow(c, a, b, 24, c.cf),
  w: (c, a, b) => subNarrow(c, a, b, 16, c.cf),
  d: sbb32,
  q: sbb64,
};
export const AND: Sized<Binary, Binary64> = {
  b: (c, a, b) => logic(c, sign8(a & b)),
  w: (c, a, b) => logic(c, sign16(a & b)),
  d: (c, a, b) => logic(c, a & b),
  q: (c, al, ah, bl, bh) => logic64(c, al & bl, ah & bh),
};
export const OR: Sized<Binary, Binary64> = {
  b: (c, a, b) => logic(c, sign8(a | b)),
  w: (c, a, b) => logic(c, sign16(a | b)),
  d: (c, a, b) => logic(c, a | b),
  q: (c, al, ah, bl, bh) => logic64(c, al | bl, ah | bh),
};
export const XOR: Sized<Binary, Binary64> = {
  b: (c, a, b) => logic(c, sign8(a ^ b)),
  w: (c, a, b) => logic(c, sign16(a ^ b)),
  d: (c, a, b) => logic(c, a ^ b),
  q: (c, al, ah, bl, bh) => logic64(c, al ^ bl, ah ^ bh),
};

/** INC and DEC leave CF alone. */
function keepCarry(f: Binary): Unary {
  return (c, a) => {
    const { cf } = c;
    const x = f(c, a, 1);
    c.cf = cf;
    return x;
  };
}

function keepCarry64(f: Binary64): Unary64 {
  return (c, al, ah) => {
    const { cf } = c;
    const x = f(c, al, ah, 1, 0);
    c.cf = cf;
    return x;
  };
}

export const INC: Sized<Unary, Unary64> = {
  b: keepCarry(ADD.b),
  w: keepCarry(ADD.w),
  d: keepCarry(ADD.d),
  q: keepCarry64(ADD.q),
};
export const DEC: Sized<Unary, Unary64> = {
  b: keepCarry(SUB.b),
  w: keepCarry(SUB.w),
  d: keepCarry(SUB.d),
  q: keepCarry64(SUB.q),
};
export const NEG: Sized<Unary, Unary64> = {
  b: (c, a) => SUB.b(c, 0, a),
  w: (c, a) => SUB.w(c, 0, a),
  d: (c, a) => SUB.d(c, 0, a),
  q: (c, al, ah) => SUB.q(c, 0, 0, al, ah),
};
/** NOT sets no flags. */
export const NOT: Sized<Unary, Unary64> = {
  b: (_c, a) => ~a,
  w: (_c, a) => ~a,
  d: (_c, a) => ~a,
  q: (c, al, ah) => {
    c.hi = ~ah;
    return ~al;
  },
};

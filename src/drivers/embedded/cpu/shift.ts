import type { Cpu } from './cpu.ts';

/*
 * Shifts and rotates. The count is masked already. A count of 0 changes no flag; where OF or AF is undefined it is
 * set as for a count of 1, or cleared.
 */

/** The operations by their encoding; 6 is another one of SHL. */
export const SHIFT = { rol: 0, ror: 1, rcl: 2, rcr: 3, shl: 4, shr: 5, sal: 6, sar: 7 } as const;

/** The flags that follow from the result of a shift, sign-extended to 32 bits. */
function result(c: Cpu, x: number): number {
  c.ar = 0;
  c.zr = x;
  c.sr = x;
  c.pr = x;
  return x;
}

function result64(c: Cpu, lo: number, hi: number): number {
  c.ar = 0;
  c.zr = lo | hi;
  c.sr = hi;
  c.pr = lo;
  c.hi = hi;
  return lo;
}

/** SHL of a value of `width` bits, 8 or 16. */
function shlNarrow(c: Cpu, a: number, count: number, width: number): number {
  if (count === 0) return a;
  const wide = count > width ? 0 : (a & ((1 << width) - 1)) * 2 ** count;
  c.cf = Math.floor(wide / 2 ** width) & 1;
  const x = (wide << (32 - width)) >> (32 - width);
  c.or = x ^ -c.cf;
  return result(c, x);
}

function shrNarrow(c: Cpu, a: number, count: number, width: number): number {
  if (count === 0) return a;
  const value = a & ((1 << width) - 1);
  c.cf = (value >>> (count - 1)) & 1;
  c.or = value << (32 - width);
  return result(c, ((value >>> count) << (32 - width)) >> (32 - width));
}

function sarNarrow(c: Cpu, a: number, count: number, width: number): number {
  if (count === 0) return a;
  const value = (a << (32 - width)) >> (32 - width);
  c.cf = (value >> (count - 1)) & 1;
  c.or = 0;
  return result(c, value >> count);
}

function shl64(c: Cpu, al: number, ah: number, count: number): number {
  c.hi = ah;
  if (count === 0) return al;
  let lo = 0;
  let hi = al << (count - 32);
  if (count < 32) {
    c.cf = (ah >>> (32 - count)) & 1;
    lo = al << count;
    hi = (ah << count) | (al >>> (32 - count));
  } else {
    c.cf = count === 32 ? ah & 1 : (al >>> (64 - count)) & 1;
  }
  c.or = hi ^ -c.cf;
  return result64(c, lo, hi);
}

/** SHR when `fill` is 0, SAR when it is the sign. */
function right64(c: Cpu, al: number, ah: number, count: number, fill: number): number {
  if (count < 32) {
    c.cf = (al >>> (count - 1)) & 1;
    const hi = (ah >>> count) | (fill << (32 - count));
    return result64(c, (al >>> count) | (ah << (32 - count)), hi);
  }
  c.cf = count === 32 ? al >>> 31 : (ah >>> (count - 33)) & 1;
  const lo = count === 32 ? ah : (ah >>> (count - 32)) | (fill << (64 - count));
  return result64(c, lo, fill);
}

function shr64(c: Cpu, al: number, ah: number, count: number): number {
  c.hi = ah;
  if (count === 0) return al;
  c.or = ah;
  return right64(c, al, ah, count, 0);
}

function sar64(c: Cpu, al: number, ah: number, count: number): number {
  c.hi = ah;
  if (count === 0) return al;
  c.or = 0;
  return right64(c, al, ah, count, ah >> 31);
}

function shl32(c: Cpu, a: number, count: number): number {
  if (count === 0) return a;
  c.cf = (a >>> (32 - count)) & 1;
  const x = a << count;
  c.or = x ^ -c.cf;
  return result(c, x);
}

function shr32(c: Cpu, a: number, count: number): number {
  if (count === 0) return a;
  c.cf = (a >>> (count - 1)) & 1;
  c.or = a;
  return result(c, (a >>> count) | 0);
}

function sar32(c: Cpu, a: number, count: number): number {
  if (count === 0) return a;
  c.cf = (a >> (count - 1)) & 1;
  c.or = 0;
  return result(c, a >> count);
}

/** Bit `width - 1` of `x` as a sign. */
function top(x: number, width: number): number {
  return x << (32 - width);
}

function rolSmall(c: Cpu, a: number, count: number, width: number): number {
  if (count === 0) return a;
  const mask = width === 32 ? -1 : (1 << width) - 1;
  const by = count % width;
  const value = a & mask;
  const x = by === 0 ? value : ((value << by) | (value >>> (width - by))) & mask;
  c.cf = x & 1;
  c.or = top(x, width) ^ -c.cf;
  return x;
}

function rorSmall(c: Cpu, a: number, count: number, width: number): number {
  if (count === 0) return a;
  const mask = width === 32 ? -1 : (1 << width) - 1;
  const by = count % width;
  const value = a & mask;
  const x = by === 0 ? value : ((value >>> by) | (value << (width - by))) & mask;
  c.cf = top(x, width) >>> 31;
  c.or = top(x, width) ^ top(x << 1, width);
  return x;
}

function rol64(c: Cpu, al: number, ah: number, count: number): number {
  c.hi = ah;
  if (count === 0) return al;
  const [lo, hi] = count & 32 ? [ah, al] : [al, ah];
  const by = count & 31;
  const x = by === 0 ? lo : (lo << by) | (hi >>> (32 - by));
  c.hi = by === 0 ? hi : (hi << by) | (lo >>> (32 - by));
  c.cf = x & 1;
  c.or = c.hi ^ -c.cf;
  return x;
}

function ror64(c: Cpu, al: number, ah: number, count: number): number {
  c.hi = ah;
  if (count === 0) return al;
  const x = rol64(c, al, ah, (64 - count) & 63);
  c.cf = c.hi >>> 31;
  c.or = c.hi ^ (c.hi << 1);
  return x;
}

/** The rotates through carry go bit by bit: they are rare. */
function rclSmall(c: Cpu, a: number, count: number, width: number): number {
  if (count % (width + 1) === 0 && width < 32) return a;
  let x = a;
  for (let i = width < 32 ? count % (width + 1) : count; i > 0; i--) {
    const out = top(x, width) >>> 31;
    x = (x << 1) | c.cf;
    c.cf = out;
  }
  if (count !== 0) c.or = top(x, width) ^ -c.cf;
  return x;
}

function rcrSmall(c: Cpu, a: number, count: number, width: number): number {
  if (count % (width + 1) === 0 && width < 32) return a;
  let x = width === 32 ? a : a & ((1 << width) - 1);
  for (let i = width < 32 ? count % (width + 1) : count; i > 0; i--) {
    const out = x & 1;
    x = (x >>> 1) | (c.cf << (width - 1));
    c.cf = out;
  }
  if (count !== 0) c.or = top(x, width) ^ top(x << 1, width);
  return x;
}

function rcl64(c: Cpu, al: number, ah: number, count: number): number {
  let lo = al;
  let hi = ah;
  for (let i = 0; i < count; i++) {
    const out = hi >>> 31;
    hi = (hi << 1) | (lo >>> 31);
    lo = (lo << 1) | c.cf;
    c.cf = out;
  }
  if (count !== 0) c.or = hi ^ -c.cf;
  c.hi = hi;
  return lo;
}

function rcr64(c: Cpu, al: number, ah: number, count: number): number {
  let lo = al;
  let hi = ah;
  for (let i = 0; i < count; i++) {
    const out = lo & 1;
    lo = (lo >>> 1) | (hi << 31);
    hi = (hi >>> 1) | (c.cf << 31);
    c.cf = out;
  }
  if (count !== 0) c.or = hi ^ (hi << 1);
  c.hi = hi;
  return lo;
}

/** A rotate of 8, 16 or 32 bits. */
function rotateSmall(c: Cpu, operation: number, a: number, count: number, width: number): number {
  switch (operation) {
    case SHIFT.rol:
      return rolSmall(c, a, count, width);
    case SHIFT.ror:
      return rorSmall(c, a, count, width);
    case SHIFT.rcl:
      return rclSmall(c, a, count, width);
    default:
      return rcrSmall(c, a, count, width);
  }
}

function shiftNarrow(c: Cpu, operation: number, a: number, count: number, width: number): number {
  if (operation < SHIFT.shl) return rotateSmall(c, operation, a, count, width);
  if (operation === SHIFT.shr) return shrNarrow(c, a, count, width);
  return operation === SHIFT.sar ? sarNarrow(c, a, count, width) : shlNarrow(c, a, count, width);
}

/** A shift or rotate of 8 bits; the upper bits of operand and result mean nothing. */
export function shift8(c: Cpu, operation: number, a: number, count: number): number {
  return shiftNarrow(c, operation, a, count, 8);
}

export function shift16(c: Cpu, operation: number, a: number, count: number): number {
  return shiftNarrow(c, operation, a, count, 16);
}

export function shift32(c: Cpu, operation: number, a: number, count: number): number {
  if (operation < SHIFT.shl) return rotateSmall(c, operation, a, count, 32);
  if (operation === SHIFT.shr) return shr32(c, a, count);
  return operation === SHIFT.sar ? sar32(c, a, count) : shl32(c, a, count);
}

/** The same of 64 bits, in halves. */
export function shift64(c: Cpu, operation: number, al: number, ah: number, count: number): number {
  switch (operation) {
    case SHIFT.rol:
      return rol64(c, al, ah, count);
    case SHIFT.ror:
      return ror64(c, al, ah, count);
    case SHIFT.rcl:
      return rcl64(c, al, ah, count);
    case SHIFT.rcr:
      return rcr64(c, al, ah, count);
    case SHIFT.shr:
      return shr64(c, al, ah, count);
    case SHIFT.sar:
      return sar64(c, al, ah, count);
    default:
      return shl64(c, al, ah, count);
  }
}

/** SHLD and SHRD of 16, 32 and 64 bits: `b` is what is shifted in. */
export function shld32(c: Cpu, a: number, b: number, count: number): number {
  if (count === 0) return a;
  c.cf = (a >>> (32 - count)) & 1;
  const x = (a << count) | (b >>> (32 - count));
  c.or = x ^ a;
  return result(c, x);
}

export function shrd32(c: Cpu, a: number, b: number, count: number): number {
  if (count === 0) return a;
  c.cf = (a >>> (count - 1)) & 1;
  const x = (a >>> count) | (b << (32 - count));
  c.or = x ^ a;
  return result(c, x);
}

/** Undefined for counts above 16, where the destination is shifted in again. */
export function shld16(c: Cpu, a: number, b: number, count: number): number {
  if (count === 0) return a;
  const wide = ((a & 0xffff) << 16) | (b & 0xffff);
  const rotated = count <= 16 ? wide << count : (wide << count) | ((a & 0xffff) >>> (32 - count));
  c.cf = (wide >>> (32 - count)) & 1;
  const x = rotated >> 16;
  c.or = (x ^ a) << 16;
  return result(c, x);
}

export function shrd16(c: Cpu, a: number, b: number, count: number): number {
  if (count === 0) return a;
  const wide = ((b & 0xffff) << 16) | (a & 0xffff);
  c.cf = (wide >>> (count - 1)) & 1;
  const shifted = count <= 16 ? wide >>> count : (wide >>> count) | ((a & 0xffff) << (32 - count));
  const x = (shifted << 16) >> 16;
  c.or = (x ^ a) << 16;
  return result(c, x);
}

export function shld64(c: Cpu, al: number, ah: number, bl: number, bh: number, count: number): number {
  c.hi = ah;
  if (count === 0) return al;
  const by = count & 31;
  const [w0, w1, w2] = count & 32 ? [bl, bh, al] : [bh, al, ah];
  const lo = by === 0 ? w1 : (w1 << by) | (w0 >>> (32 - by));
  const hi = by === 0 ? w2 : (w2 << by) | (w1 >>> (32 - by));
  c.cf = count <= 32 ? (ah >>> (32 - count)) & 1 : (al >>> (64 - count)) & 1;
  if (count === 32) c.cf = ah & 1;
  c.or = hi ^ ah;
  return result64(c, lo, hi);
}

export function shrd64(c: Cpu, al: number, ah: number, bl: number, bh: number, count: number): number {
  c.hi = ah;
  if (count === 0) return al;
  const by = count & 31;
  const [w0, w1, w2] = count & 32 ? [ah, bl, bh] : [al, ah, bl];
  const lo = by === 0 ? w0 : (w0 >>> by) | (w1 << (32 - by));
  const hi = by === 0 ? w1 : (w1 >>> by) | (w2 << (32 - by));
  c.cf = count <= 32 ? (al >>> (count - 1)) & 1 : (ah >>> (count - 33)) & 1;
  c.or = hi ^ ah;
  return result64(c, lo, hi);
}

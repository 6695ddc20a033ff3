import type { Cpu } from './cpu.ts';
import { read8, read16, read32, read64 } from './mmu.ts';
import type { Op } from './op.ts';
import { ZERO } from './slots.ts';

/** Computes the linear address of the memory operand into c.eaLo and c.eaHi. */
export function address(c: Cpu, op: Op): void {
  const { r } = c;
  const base = r[op.base]!;
  let lo = (base + op.disp) | 0;
  let hi = (r[op.base + 1]! + op.dispHi + (lo >>> 0 < base >>> 0 ? 1 : 0)) | 0;
  if (op.index !== ZERO) {
    const { scale } = op;
    const indexLo = r[op.index]!;
    const scaled = indexLo << scale;
    const scaledHi =
      scale === 0 ? r[op.index + 1]! : (r[op.index + 1]! << scale) | (indexLo >>> (32 - scale));
    lo = (lo + scaled) | 0;
    hi = (hi + scaledHi + (lo >>> 0 < scaled >>> 0 ? 1 : 0)) | 0;
  }
  if (op.address32 !== 0) hi = 0;
  if (op.segment !== ZERO) {
    const segment = r[op.segment]!;
    lo = (lo + segment) | 0;
    hi = op.address32 === 2 ? 0 : (hi + r[op.segment + 1]! + (lo >>> 0 < segment >>> 0 ? 1 : 0)) | 0;
  }
  c.eaLo = lo;
  c.eaHi = hi;
}

export function load8(c: Cpu, op: Op): number {
  address(c, op);
  return read8(c, c.eaLo, c.eaHi);
}

export function load16(c: Cpu, op: Op): number {
  address(c, op);
  return read16(c, c.eaLo, c.eaHi);
}

export function load32(c: Cpu, op: Op): number {
  address(c, op);
  return read32(c, c.eaLo, c.eaHi);
}

/** Low half; the high half is in c.hi. */
export function load64(c: Cpu, op: Op): number {
  address(c, op);
  return read64(c, c.eaLo, c.eaHi);
}

/** Moves the effective address on by a few bytes. */
export function advanceAddress(c: Cpu, bytes: number): void {
  const lo = (c.eaLo + bytes) | 0;
  if (lo >>> 0 < c.eaLo >>> 0) c.eaHi = (c.eaHi + 1) | 0;
  c.eaLo = lo;
}

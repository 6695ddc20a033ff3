import { ALU, compute8, compute16, compute32, compute64 } from './alu.ts';
import { goBack, goOn } from './branch.ts';
import { FLAG } from './constants.ts';
import type { Cpu } from './cpu.ts';
import { read8, read16, read32, read64, write8, write16, write32, write64 } from './mmu.ts';
import type { Op, Run } from './op.ts';
import { RAX, RCX, RDI, RSI, ZERO } from './slots.ts';
import { TLB_MASK, TLB_SHIFT } from './tlb.ts';

/*
 * String instructions: op.imm is the size of an element in bytes, op.src the segment base slot of the source and
 * op.dst that of the destination. With REP each iteration counts as one instruction; after some of them the
 * instruction returns with rip still at itself, so that nothing waits for a long one.
 */

/** Iterations of a REP instruction before the loop looks for interrupts and the end of its slice. */
const ITERATIONS = 512;

function sourceAddress(c: Cpu, op: Op): void {
  elementAddress(c, op, RSI, op.src);
}

function destinationAddress(c: Cpu, op: Op): void {
  elementAddress(c, op, RDI, op.dst);
}

function elementAddress(c: Cpu, op: Op, slot: number, segment: number): void {
  const { r } = c;
  let lo = r[slot]!;
  let hi = op.address32 !== 0 ? 0 : r[slot + 1]!;
  if (segment !== ZERO) {
    const base = r[segment]!;
    lo = (lo + base) | 0;
    hi = op.address32 === 2 ? 0 : (hi + r[segment + 1]! + (lo >>> 0 < base >>> 0 ? 1 : 0)) | 0;
  }
  c.eaLo = lo;
  c.eaHi = hi;
}

/** Moves rsi or rdi on by `bytes`, which is negative when DF is set. */
function advance(c: Cpu, op: Op, slot: number, bytes: number): void {
  const { r } = c;
  const old = r[slot]!;
  const lo = (old + bytes) | 0;
  r[slot] = lo;
  if (op.address32 !== 0) r[slot + 1] = 0;
  else if (bytes < 0 ? lo >>> 0 > old >>> 0 : lo >>> 0 < old >>> 0) {
    r[slot + 1] = (r[slot + 1]! + (bytes < 0 ? -1 : 1)) | 0;
  }
}

function stride(c: Cpu, op: Op): number {
  return (c.systemFlags & FLAG.DF) !== 0 ? -op.imm : op.imm;
}

/** Reads an element at the effective address; the upper half of 8 bytes is in c.hi. */
function readElement(c: Cpu, size: number): number {
  if (size === 1) return read8(c, c.eaLo, c.eaHi);
  if (size === 2) return read16(c, c.eaLo, c.eaHi);
  if (size === 4) return read32(c, c.eaLo, c.eaHi);
  return read64(c, c.eaLo, c.eaHi);
}

function writeElement(c: Cpu, size: number, lo: number, hi: number): void {
  if (size === 1) write8(c, c.eaLo, c.eaHi, lo);
  else if (size === 2) write16(c, c.eaLo, c.eaHi, lo);
  else if (size === 4) write32(c, c.eaLo, c.eaHi, lo);
  else write64(c, c.eaLo, c.eaHi, lo, hi);
}

/** Sets the flags of `a - b`. */
function compareElements(c: Cpu, size: number, al: number, ah: number, bl: number, bh: number): void {
  if (size === 1) compute8(c, ALU.sub, al, bl);
  else if (size === 2) compute16(c, ALU.sub, al, bl);
  else if (size === 4) compute32(c, ALU.sub, al, bl);
  else compute64(c, ALU.sub, al, ah, bl, bh);
}

/** One iteration. */
type Step = (c: Cpu, op: Op) => void;

const movs: Step = (c, op) => {
  sourceAddress(c, op);
  const lo = readElement(c, op.imm);
  const { hi } = c;
  destinationAddress(c, op);
  writeElement(c, op.imm, lo, hi);
  const by = stride(c, op);
  advance(c, op, RSI, by);
  advance(c, op, RDI, by);
};

const stos: Step = (c, op) => {
  destinationAddress(c, op);
  writeElement(c, op.imm, c.r[RAX]!, c.r[RAX + 1]!);
  advance(c, op, RDI, stride(c, op));
};

const lods: Step = (c, op) => {
  sourceAddress(c, op);
  const lo = readElement(c, op.imm);
  advance(c, op, RSI, stride(c, op));
  if (op.imm === 1) c.r8[4 * RAX] = lo;
  else if (op.imm === 2) c.r16[2 * RAX] = lo;
  else {
    c.r[RAX] = lo;
    c.r[RAX + 1] = op.imm === 4 ? 0 : c.hi;
  }
};

const scas: Step = (c, op) => {
  destinationAddress(c, op);
  const lo = readElement(c, op.imm);
  compareElements(c, op.imm, c.r[RAX]!, c.r[RAX + 1]!, lo, c.hi);
  advance(c, op, RDI, stride(c, op));
};

const cmps: Step = (c, op) => {
  sourceAddress(c, op);
  const lo = readElement(c, op.imm);
  const { hi } = c;
  destinationAddress(c, op);
  const other = readElement(c, op.imm);
  compareElements(c, op.imm, lo, hi, other, c.hi);
  const by = stride(c, op);
  advance(c, op, RSI, by);
  advance(c, op, RDI, by);
};

function countIsZero(c: Cpu, op: Op): boolean {
  return c.r[RCX] === 0 && (op.address32 !== 0 || c.r[RCX + 1] === 0);
}

/** Takes `count` (below 2^32) from (e)cx. */
function takeFromCount(c: Cpu, op: Op, count: number): void {
  const { r } = c;
  const old = r[RCX]!;
  const lo = (old - count) | 0;
  r[RCX] = lo;
  if (op.address32 !== 0) r[RCX + 1] = 0;
  else if (lo >>> 0 > old >>> 0) r[RCX + 1] = (r[RCX + 1]! - 1) | 0;
}

/**
 * MOVS or STOS of many elements at once, as far as they lie in one page each and need no check. Returns how many
 * were done; 0 when it must go one by one.
 */
function bulk(c: Cpu, op: Op, copy: boolean): number {
  if ((c.systemFlags & FLAG.DF) !== 0) return 0;
  const size = op.imm;
  destinationAddress(c, op);
  const to = c.eaLo;
  const entry = (to >>> TLB_SHIFT) & TLB_MASK;
  if (c.writeTlb[entry] !== (to & ~0xfff) || c.writeTlb[entry + 1] !== c.eaHi) return 0;
  const at = c.writeTlb[entry + 2]! + (to & 0xfff);
  let bytes = 4096 - (to & 0xfff);
  let from = 0;
  if (copy) {
    sourceAddress(c, op);
    const source = c.eaLo;
    const readEntry = (source >>> TLB_SHIFT) & TLB_MASK;
    if (c.readTlb[readEntry] !== (source & ~0xfff) || c.readTlb[readEntry + 1] !== c.eaHi) return 0;
    from = c.readTlb[readEntry + 2]! + (source & 0xfff);
    bytes = Math.min(bytes, 4096 - (source & 0xfff));
    // An overlap that repeats what was just written is left to the slow way.
    if (at > from && at < from + bytes) return 0;
  }
  let count = Math.floor(bytes / size);
  if (op.address32 !== 0 || c.r[RCX + 1] === 0) count = Math.min(count, c.r[RCX]! >>> 0);
  if (count < 2) return 0;
  bytes = count * size;
  if (copy) c.memory.bytes.copyWithin(at, from, from + bytes);
  else fill(c, at, bytes, size);
  if (copy) advance(c, op, RSI, bytes);
  advance(c, op, RDI, bytes);
  takeFromCount(c, op, count);
  return count;
}

function fill(c: Cpu, at: number, bytes: number, size: number): void {
  const target = c.memory.bytes;
  if (size === 1) {
    target.fill(c.r8[4 * RAX]!, at, at + bytes);
    return;
  }
  for (let i = 0; i < bytes; i++) target[at + i] = c.r8[4 * RAX + (i & (size - 1))]!;
}

/** A string instruction from its step. `ends` says after a step whether REP stops there. */
function repeating(step: Step, ends?: (c: Cpu, op: Op) => boolean, many?: (c: Cpu, op: Op) => number): Run {
  return (c, op) => {
    if (op.rep === 0) {
      step(c, op);
      goOn(c, op);
      return;
    }
    for (let i = 0; i < ITERATIONS; i++) {
      if (countIsZero(c, op)) {
        goOn(c, op);
        return;
      }
      const done = many !== undefined && c.attention === 0 ? many(c, op) : 0;
      if (done === 0) {
        step(c, op);
        takeFromCount(c, op, 1);
        if (ends?.(c, op)) {
          goOn(c, op);
          return;
        }
      }
      c.left -= done === 0 ? 1 : Math.ceil(done / 64);
      if (c.attention !== 0 || c.left <= 0) break;
    }
    if (countIsZero(c, op)) goOn(c, op);
    else goBack(c, op);
  };
}

/** REPE stops when ZF is clear, REPNE when it is set. */
const endsByZero = (c: Cpu, op: Op) => (op.rep === 0xf3 ? c.zr !== 0 : c.zr === 0);

export const MOVS = repeating(movs, undefined, (c, op) => bulk(c, op, true));
export const STOS = repeating(stos, undefined, (c, op) => bulk(c, op, false));
export const LODS = repeating(lods);
export const SCAS = repeating(scas, endsByZero);
export const CMPS = repeating(cmps, endsByZero);

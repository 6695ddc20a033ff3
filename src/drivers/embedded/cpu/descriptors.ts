import { VECTOR } from '../../../abi/x86.ts';
import type { Cpu } from './cpu.ts';
import { readSystem32, writeSystem32 } from './mmu.ts';
import { raise } from './raise.ts';
import { CS, LDTR, SEGMENT_BASE, SS, TR } from './slots.ts';

/** The descriptor that {@link readDescriptor} read last. */
export interface Descriptor {
  /** Its two words, and for a system descriptor of long mode the third one, bits 63 to 32 of the base. */
  low: number;
  high: number;
  /** Linear address of the descriptor. */
  lo: number;
  hi: number;
}

const descriptor: Descriptor = { low: 0, high: 0, lo: 0, hi: 0 };

/** Offset of a descriptor's high word, and of the upper half of a 16-byte one. */
const HIGH = 4;
const BASE_HIGH = 8;
const ACCESSED = 1 << 8;
const PRESENT = 1 << 15;
const CODE_OR_DATA = 1 << 12;
const BUSY = 1 << 9;

const isPresent = (d: Descriptor) => (d.high & PRESENT) !== 0;
const isCodeOrData = (d: Descriptor) => (d.high & CODE_OR_DATA) !== 0;
const typeOf = (d: Descriptor) => (d.high >>> 8) & 15;
const dplOf = (d: Descriptor) => (d.high >>> 13) & 3;
const isCode = (d: Descriptor) => isCodeOrData(d) && (typeOf(d) & 8) !== 0;
export const isLong = (d: Descriptor) => (d.high & (1 << 21)) !== 0;
const isBig = (d: Descriptor) => (d.high & (1 << 22)) !== 0;

/** Reads the descriptor of a selector that is not null. Raises `vector` with the selector when there is none. */
function readDescriptor(c: Cpu, selector: number, vector: number): Descriptor {
  const local = (selector & 4) !== 0;
  const offset = selector & 0xfff8;
  const limit = local ? c.segments[LDTR]!.limit : c.gdtr.limit;
  if ((local && !c.segments[LDTR]!.present) || offset + 7 > limit >>> 0) raise(c, vector, selector & 0xfffc);
  const baseLo = local ? c.r[SEGMENT_BASE + 2 * LDTR]! : c.gdtr.lo;
  const baseHi = local ? c.r[SEGMENT_BASE + 2 * LDTR + 1]! : c.gdtr.hi;
  const lo = (baseLo + offset) | 0;
  const hi = (baseHi + (lo >>> 0 < baseLo >>> 0 ? 1 : 0)) | 0;
  descriptor.low = readSystem32(c, lo, hi);
  descriptor.high = readSystem32(c, (lo + HIGH) | 0, hi);
  descriptor.lo = lo;
  descriptor.hi = hi;
  return descriptor;
}

function baseOf(d: Descriptor): number {
  return (d.low >>> 16) | ((d.high & 0xff) << 16) | (d.high & 0xff00_0000);
}

function limitOf(d: Descriptor): number {
  const limit = (d.low & 0xffff) | (d.high & 0xf0000);
  return (d.high & (1 << 23)) === 0 ? limit : ((limit << 12) | 0xfff) >>> 0;
}

/** Fills the hidden part of a segment register. */
function setSegment(c: Cpu, segment: number, selector: number, d: Descriptor, baseHi: number): void {
  const target = c.segments[segment]!;
  target.selector = selector;
  target.limit = limitOf(d);
  target.setAttributes(d.high);
  c.r[SEGMENT_BASE + 2 * segment] = baseOf(d);
  c.r[SEGMENT_BASE + 2 * segment + 1] = baseHi;
  c.systemEpoch++;
}

/** Sets the accessed bit in the table, as the processor does on every load. */
function markAccessed(c: Cpu, d: Descriptor): void {
  if ((d.high & ACCESSED) !== 0) return;
  d.high |= ACCESSED;
  writeSystem32(c, (d.lo + HIGH) | 0, d.hi, d.high);
}

/** Loads es, ss, ds, fs or gs. */
export function loadDataSegment(c: Cpu, segment: number, selector: number): void {
  const rpl = selector & 3;
  if ((selector & 0xfffc) === 0) {
    if (segment === SS && !(c.mode64 && c.cpl !== 3 && rpl === c.cpl)) raise(c, VECTOR.GP, 0);
    c.segments[segment]!.setNull(selector, segment === SS ? c.cpl : 0);
    c.r[SEGMENT_BASE + 2 * segment] = 0;
    c.r[SEGMENT_BASE + 2 * segment + 1] = 0;
    c.systemEpoch++;
    return;
  }
  const d = readDescriptor(c, selector, VECTOR.GP);
  const type = typeOf(d);
  const code = (type & 8) !== 0;
  const usable = segment === SS ? !code && (type & 2) !== 0 : !code || (type & 2) !== 0;
  const conforming = code && (type & 4) !== 0;
  const privileged =
    segment === SS
      ? rpl === c.cpl && dplOf(d) === c.cpl
      : conforming || (rpl <= dplOf(d) && c.cpl <= dplOf(d));
  if (!isCodeOrData(d) || !usable || !privileged) raise(c, VECTOR.GP, selector & 0xfffc);
  if (!isPresent(d)) raise(c, segment === SS ? VECTOR.SS : VECTOR.NP, selector & 0xfffc);
  markAccessed(c, d);
  setSegment(c, segment, selector, d, 0);
}

/**
 * Checks the descriptor of a code segment that control goes to with privilege `cpl`, and returns it. 16-bit code
 * does not exist here: it counts as a segment that cannot be loaded.
 */
export function checkCodeSegment(c: Cpu, selector: number, cpl: number): Descriptor {
  if ((selector & 0xfffc) === 0) raise(c, VECTOR.GP, 0);
  const d = readDescriptor(c, selector, VECTOR.GP);
  const conforming = (typeOf(d) & 4) !== 0;
  const long = c.longMode && isLong(d);
  const privileged = conforming ? dplOf(d) <= cpl : dplOf(d) === cpl;
  if (!isCode(d) || !privileged || long === isBig(d)) raise(c, VECTOR.GP, selector & 0xfffc);
  if (!isPresent(d)) raise(c, VECTOR.NP, selector & 0xfffc);
  markAccessed(c, d);
  return d;
}

/** Loads cs from a checked descriptor and takes on its privilege and mode. */
export function setCodeSegment(c: Cpu, selector: number, d: Descriptor, cpl: number): void {
  setSegment(c, CS, (selector & 0xfffc) | cpl, d, 0);
  c.setCpl(cpl);
  c.updateMode();
}

/** LLDT. */
export function loadLdt(c: Cpu, selector: number): void {
  if ((selector & 0xfffc) === 0) {
    c.segments[LDTR]!.setNull(selector, 0);
    c.systemEpoch++;
    return;
  }
  const d = readSystemDescriptor(c, selector, [2]);
  setSegment(c, LDTR, selector, d, upperBase(c, d));
}

/** LTR: the TSS becomes busy. */
export function loadTaskRegister(c: Cpu, selector: number): void {
  if ((selector & 0xfffc) === 0) raise(c, VECTOR.GP, 0);
  const d = readSystemDescriptor(c, selector, [9]);
  const baseHi = upperBase(c, d);
  d.high |= BUSY;
  writeSystem32(c, (d.lo + HIGH) | 0, d.hi, d.high);
  setSegment(c, TR, selector, d, baseHi);
}

function readSystemDescriptor(c: Cpu, selector: number, types: readonly number[]): Descriptor {
  if ((selector & 4) !== 0) raise(c, VECTOR.GP, selector & 0xfffc);
  const d = readDescriptor(c, selector, VECTOR.GP);
  if (isCodeOrData(d) || !types.includes(typeOf(d))) raise(c, VECTOR.GP, selector & 0xfffc);
  if (!isPresent(d)) raise(c, VECTOR.NP, selector & 0xfffc);
  return d;
}

function upperBase(c: Cpu, d: Descriptor): number {
  return c.longMode ? readSystem32(c, (d.lo + BASE_HIGH) | 0, d.hi) : 0;
}

/**
 * Checks the code segment of a gate and returns its descriptor; the handler runs with the privilege of the segment,
 * or the current one when it is conforming. `external` is the EXT bit of error codes.
 */
export function checkGateSegment(c: Cpu, selector: number, external: number): Descriptor {
  const code = (selector & 0xfffc) | external;
  if ((selector & 0xfffc) === 0) raise(c, VECTOR.GP, external);
  const d = readDescriptor(c, selector, VECTOR.GP);
  if (!isCode(d) || !isLong(d) || isBig(d) || dplOf(d) > c.cpl) raise(c, VECTOR.GP, code);
  if (!isPresent(d)) raise(c, VECTOR.NP, code);
  markAccessed(c, d);
  return d;
}

/** The privilege that code of a segment entered through a gate runs with. */
export function gatePrivilege(c: Cpu, d: Descriptor): number {
  return (typeOf(d) & 4) !== 0 ? c.cpl : dplOf(d);
}

import { VECTOR } from '../../../abi/x86.ts';
import { FLAG } from './constants.ts';
import type { Cpu } from './cpu.ts';
import { checkGateSegment, gatePrivilege, setCodeSegment } from './descriptors.ts';
import { GuestEvent } from './event.ts';
import { getFlags } from './flags.ts';
import { readSystem32, readSystem64, writeAs } from './mmu.ts';
import { raise } from './raise.ts';
import { FAULT, SHUTDOWN } from './signals.ts';
import { CS, RSP, SEGMENT_BASE, SS, TR } from './slots.ts';

/*
 * Delivery of exceptions and interrupts through the IDT of long mode. Outside long mode there is no delivery: the
 * processor shuts down.
 */

const GATE_SIZE = 16;
const GATE_PRESENT = 0x8000;
const INTERRUPT_GATE = 14;
const TRAP_GATE = 15;
/** Offsets in the 64-bit TSS. */
const TSS_RSP0 = 4;
const TSS_IST1 = 36;

/** The gate that was read last, and the stack frame that is being made. */
const gate = { selector: 0, lo: 0, hi: 0, ist: 0, isInterrupt: false };
const frame = new Int32Array(12);
const current = new GuestEvent();

/** Vectors that make a double fault of a second one of their kind. */
function isContributory(vector: number): boolean {
  return vector === VECTOR.DE || (vector >= VECTOR.TS && vector <= VECTOR.GP);
}

/**
 * Delivers `event`: rip is at its handler then. A fault on the way is delivered in its place, or as a double fault.
 * Throws STOP when a page trap is in the way, with no register changed, and SHUTDOWN when #DF cannot be delivered.
 */
export function deliver(c: Cpu, event: GuestEvent): void {
  current.copy(event);
  for (;;) {
    try {
      enterHandler(c, current);
      return;
    } catch (signal) {
      if (signal !== FAULT) throw signal;
    }
    const first = current.vector;
    const second = c.fault.vector;
    if (first === VECTOR.DF) throw SHUTDOWN;
    const double =
      (isContributory(first) && isContributory(second)) ||
      (first === VECTOR.PF && (second === VECTOR.PF || isContributory(second)));
    if (double) current.set(VECTOR.DF, true, 0);
    else current.copy(c.fault);
  }
}

function enterHandler(c: Cpu, event: GuestEvent): void {
  if (!c.longMode) throw SHUTDOWN;
  if (event.vector === VECTOR.PF) {
    c.cr2Lo = event.addressLo;
    c.cr2Hi = event.addressHi;
    c.systemEpoch++;
  }
  const external = event.external ? 1 : 0;
  readGate(c, event, external);
  const descriptor = checkGateSegment(c, gate.selector, external);
  const cpl = gatePrivilege(c, descriptor);
  const raised = cpl < c.cpl;
  let lo = c.r[RSP]!;
  let hi = c.r[RSP + 1]!;
  if (gate.ist !== 0) {
    lo = readTss(c, TSS_IST1 + 8 * (gate.ist - 1));
    hi = c.hi;
  } else if (raised) {
    lo = readTss(c, TSS_RSP0 + 8 * cpl);
    hi = c.hi;
  }
  const words = makeFrame(c, event);
  lo &= ~15;
  for (let i = 0; i < words; i += 2) {
    if (lo >>> 0 < 8) hi = (hi - 1) | 0;
    lo = (lo - 8) | 0;
    writeAs(c, cpl === 3, lo, hi, frame[i]!, frame[i + 1]!);
  }
  setCodeSegment(c, gate.selector, descriptor, cpl);
  if (raised) {
    c.segments[SS]!.setNull(cpl, cpl);
    c.r[SEGMENT_BASE + 2 * SS] = 0;
    c.r[SEGMENT_BASE + 2 * SS + 1] = 0;
  }
  c.r[RSP] = lo;
  c.r[RSP + 1] = hi;
  c.ripLo = gate.lo;
  c.ripHi = gate.hi;
  const cleared = FLAG.TF | FLAG.NT | FLAG.RF | FLAG.VM | (gate.isInterrupt ? FLAG.IF : 0);
  c.setSystemFlags(c.systemFlags & ~cleared);
}

/** Reads and checks the IDT entry of a vector. */
function readGate(c: Cpu, event: GuestEvent, external: number): void {
  const offset = event.vector * GATE_SIZE;
  const error = event.vector * 8 + 2 + external;
  if (offset + GATE_SIZE - 1 > c.idtr.limit) raise(c, VECTOR.GP, error);
  const lo = (c.idtr.lo + offset) | 0;
  const hi = (c.idtr.hi + (lo >>> 0 < c.idtr.lo >>> 0 ? 1 : 0)) | 0;
  const word0 = readSystem64(c, lo, hi);
  const word1 = c.hi;
  const targetHi = readSystem32(c, (lo + 8) | 0, lo >>> 0 > 0xffff_fff7 ? (hi + 1) | 0 : hi);
  const type = (word1 >>> 8) & 31;
  if (type !== INTERRUPT_GATE && type !== TRAP_GATE) raise(c, VECTOR.GP, error);
  if (event.softwareLength !== 0 && ((word1 >>> 13) & 3) < c.cpl) raise(c, VECTOR.GP, error);
  if ((word1 & GATE_PRESENT) === 0) raise(c, VECTOR.NP, error);
  gate.selector = word0 >>> 16;
  gate.lo = (word0 & 0xffff) | (word1 & 0xffff_0000);
  gate.hi = targetHi;
  gate.ist = word1 & 7;
  gate.isInterrupt = type === INTERRUPT_GATE;
}

function readTss(c: Cpu, offset: number): number {
  if (offset + 7 > c.segments[TR]!.limit) raise(c, VECTOR.TS, c.segments[TR]!.selector & 0xfffc);
  const base = c.r[SEGMENT_BASE + 2 * TR]!;
  const lo = (base + offset) | 0;
  const hi = (c.r[SEGMENT_BASE + 2 * TR + 1]! + (lo >>> 0 < base >>> 0 ? 1 : 0)) | 0;
  return readSystem64(c, lo, hi);
}

/** Lays out what the handler finds on its stack, in the order of the pushes; returns how many words it is. */
function makeFrame(c: Cpu, event: GuestEvent): number {
  const returnLo = (c.ripLo + event.softwareLength) | 0;
  frame[0] = c.segments[SS]!.selector;
  frame[1] = 0;
  frame[2] = c.r[RSP]!;
  frame[3] = c.r[RSP + 1]!;
  frame[4] = getFlags(c);
  frame[5] = 0;
  frame[6] = c.segments[CS]!.selector;
  frame[7] = 0;
  frame[8] = returnLo;
  frame[9] = (c.ripHi + (returnLo >>> 0 < c.ripLo >>> 0 ? 1 : 0)) | 0;
  frame[10] = event.code;
  frame[11] = 0;
  return event.hasCode ? 12 : 10;
}

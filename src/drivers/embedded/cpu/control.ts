import { VECTOR } from '../../../abi/x86.ts';
import { type Answer, DESCRIPTOR_TABLE, type InterceptedCr } from '../../../machine/index.ts';
import { CR0, CR0_KNOWN, CR4, CR4_KNOWN, EFER, PHYSICAL_BITS, XCR0_KNOWN } from './constants.ts';
import type { Cpu } from './cpu.ts';
import type { Op, Run } from './op.ts';
import { raise, requireRing0, undefinedOpcode } from './raise.ts';
import { ARMED, STOP } from './signals.ts';
import { RAX, RCX, RDX } from './slots.ts';
import { highHalf, lowHalf } from './wide.ts';

/* Control registers, debug registers, XCR0 and MSRs as instructions write them. */

const CR_ARMED = { 0: ARMED.cr0, 3: ARMED.cr3, 4: ARMED.cr4 } as const;
const CR3_RESERVED_HIGH = -1 << (PHYSICAL_BITS - 32);

/** Raises #GP when the value cannot be stored. */
function checkCr(c: Cpu, cr: InterceptedCr, lo: number, hi: number): void {
  if (!acceptsCr(c, cr, lo, hi)) raise(c, VECTOR.GP, 0);
}

function acceptsCr(c: Cpu, cr: InterceptedCr, lo: number, hi: number): boolean {
  if (cr === 3) return (hi & CR3_RESERVED_HIGH) === 0;
  if (hi !== 0) return false;
  if (cr === 4) return (lo & ~CR4_KNOWN) === 0 && !(c.longMode && (lo & CR4.PAE) === 0);
  const paging = (lo & CR0.PG) !== 0;
  if ((lo & ~CR0_KNOWN) !== 0 || (paging && (lo & CR0.PE) === 0)) return false;
  if ((lo & CR0.NW) !== 0 && (lo & CR0.CD) === 0) return false;
  if ((lo & CR0.PE) === 0) return false;
  // Paging is that of long mode, entered with LME and PAE set; it is left from 32-bit code.
  if (paging && (c.cr0 & CR0.PG) === 0) return (c.efer & EFER.LME) !== 0 && (c.cr4 & CR4.PAE) !== 0;
  return paging || !c.mode64;
}

/** Stores a checked value with all that follows from it. */
function storeCr(c: Cpu, cr: InterceptedCr, lo: number, hi: number): void {
  if (cr === 3) {
    c.cr3Lo = lo;
    c.cr3Hi = hi;
  } else if (cr === 4) c.cr4 = lo;
  else {
    c.cr0 = lo | CR0.ET;
    c.efer = (lo & CR0.PG) !== 0 ? c.efer | EFER.LMA : c.efer & ~EFER.LMA;
    c.updateMode();
  }
  c.systemEpoch++;
  c.flush();
}

export function readCr(c: Cpu, cr: number): number {
  c.hi = 0;
  if (cr === 0) return c.cr0;
  if (cr === 4) return c.cr4;
  if (cr === 8) return c.apic.taskPriority;
  c.hi = cr === 2 ? c.cr2Hi : c.cr3Hi;
  return cr === 2 ? c.cr2Lo : c.cr3Lo;
}

/** A guest's write: checked, reported when it changes the value, stored. */
function writeCr(c: Cpu, cr: InterceptedCr, lo: number, hi: number): void {
  const stored = cr === 0 ? lo | CR0.ET : lo;
  checkCr(c, cr, stored, hi);
  const old = readCr(c, cr);
  if ((c.armed & CR_ARMED[cr]) !== 0 && (old !== stored || c.hi !== hi)) {
    const stop = c.stops.cr;
    stop.cr = cr;
    stop.oldLo = old;
    stop.oldHi = c.hi;
    stop.newLo = stored;
    stop.newHi = hi;
    c.stop = stop;
    throw STOP;
  }
  storeCr(c, cr, stored, hi);
}

/** Finishes a CR write that was let go on, with the value of the answer if it has one. */
export function completeCr(c: Cpu, value: Answer['value']): void {
  const { cr, newLo, newHi } = c.stops.cr;
  const lo = value === undefined ? newLo : lowHalf(value);
  const hi = value === undefined ? newHi : highHalf(value);
  checkCr(c, cr, lo, hi);
  storeCr(c, cr, lo, hi);
}

/** MOV to a control register: number in op.imm, source in op.src. */
export const movToCr: Run = (c, op) => {
  requireRing0(c);
  const lo = c.r[op.src]!;
  const hi = c.mode64 ? c.r[op.src + 1]! : 0;
  if (op.imm === 0 || op.imm === 3 || op.imm === 4) writeCr(c, op.imm, lo, hi);
  else if (op.imm === 2) {
    c.cr2Lo = lo;
    c.cr2Hi = hi;
    c.systemEpoch++;
  } else if (op.imm === 8) {
    if (hi !== 0 || (lo & ~15) !== 0) raise(c, VECTOR.GP, 0);
    c.apic.taskPriority = lo;
    c.updateInterrupt();
    c.systemEpoch++;
  } else undefinedOpcode(c);
};

export const movFromCr: Run = (c, op) => {
  requireRing0(c);
  if (![0, 2, 3, 4, 8].includes(op.imm)) undefinedOpcode(c);
  c.r[op.dst] = readCr(c, op.imm);
  c.r[op.dst + 1] = c.hi;
};

/** dr4 and dr5 are names of dr6 and dr7. */
function debugRegister(op: Op): number {
  return 2 * (op.imm === 4 || op.imm === 5 ? op.imm + 2 : op.imm);
}

/** Debug registers are stored; breakpoints in them do not fire. */
export const movToDr: Run = (c, op) => {
  requireRing0(c);
  const at = debugRegister(op);
  const hi = c.mode64 ? c.r[op.src + 1]! : 0;
  if (at >= 12 && hi !== 0) raise(c, VECTOR.GP, 0);
  const fixed = at === 12 ? 0xffff_0ff0 | 0 : at === 14 ? 0x400 : 0;
  c.dr[at] = c.r[op.src]! | fixed;
  c.dr[at + 1] = hi;
};

export const movFromDr: Run = (c, op) => {
  requireRing0(c);
  const at = debugRegister(op);
  c.r[op.dst] = c.dr[at]!;
  c.r[op.dst + 1] = c.dr[at + 1]!;
};

/** CLTS is a write of CR0, and is reported as one. */
export const clts: Run = (c) => {
  requireRing0(c);
  writeCr(c, 0, c.cr0 & ~CR0.TS, 0);
};

/** LMSW of a value: the lower four bits of CR0, of which PE can only be set. */
export function loadMachineStatus(c: Cpu, value: number): void {
  requireRing0(c);
  writeCr(c, 0, (c.cr0 & ~0xe) | (value & 0xf), 0);
}

export const xgetbv: Run = (c) => {
  if ((c.cr4 & CR4.OSXSAVE) === 0) undefinedOpcode(c);
  if (c.r[RCX] !== 0) raise(c, VECTOR.GP, 0);
  c.r[RAX] = c.xcr0;
  c.r[RDX] = 0;
  c.r[RAX + 1] = c.r[RDX + 1] = 0;
};

/** The stop comes with the new value in effect; the instruction that runs again then changes nothing. */
export const xsetbv: Run = (c) => {
  if ((c.cr4 & CR4.OSXSAVE) === 0) undefinedOpcode(c);
  requireRing0(c);
  const value = c.r[RAX]!;
  const avxAlone = (value & 4) !== 0 && (value & 2) === 0;
  if (c.r[RCX] !== 0 || c.r[RDX] !== 0 || (value & ~XCR0_KNOWN) !== 0 || (value & 1) === 0 || avxAlone) {
    raise(c, VECTOR.GP, 0);
  }
  const old = c.xcr0;
  c.xcr0 = value;
  if (old === value || (c.armed & ARMED.xsetbv) === 0) return;
  const stop = c.stops.xsetbv;
  stop.oldLo = old;
  stop.newLo = value;
  c.stop = stop;
  throw STOP;
};

export const rdmsr: Run = (c) => {
  requireRing0(c);
  const value = c.msrs.read(c.r[RCX]! >>> 0);
  if (value === undefined) raise(c, VECTOR.GP, 0);
  c.r[RAX] = value;
  c.r[RDX] = c.hi;
  c.r[RAX + 1] = c.r[RDX + 1] = 0;
};

export const wrmsr: Run = (c) => {
  requireRing0(c);
  const index = c.r[RCX]! >>> 0;
  const lo = c.r[RAX]!;
  const hi = c.r[RDX]!;
  if (!c.msrs.accepts(index, lo, hi)) raise(c, VECTOR.GP, 0);
  if (c.armedMsrs.size !== 0 && c.armedMsrs.has(index)) {
    const old = c.msrs.read(index);
    if (old !== undefined && (old !== lo || c.hi !== hi)) {
      const stop = c.stops.msr;
      stop.msr = index;
      stop.oldLo = old;
      stop.oldHi = c.hi;
      stop.newLo = lo;
      stop.newHi = hi;
      c.stop = stop;
      throw STOP;
    }
  }
  c.msrs.write(index, lo, hi);
};

/** Finishes an MSR write that was let go on, with the value of the answer if it has one. */
export function completeMsr(c: Cpu, value: Answer['value']): void {
  const { msr, newLo, newHi } = c.stops.msr;
  const lo = value === undefined ? newLo : lowHalf(value);
  const hi = value === undefined ? newHi : highHalf(value);
  if (!c.msrs.accepts(msr, lo, hi)) raise(c, VECTOR.GP, 0);
  c.msrs.write(msr, lo, hi);
}

/** Reports an access to a descriptor-table register unless it was allowed already. */
export function checkDescriptorTrap(c: Cpu, table: keyof typeof DESCRIPTOR_TABLE, write: boolean): void {
  if ((c.armed & ARMED.descriptor) === 0 || c.descriptorGranted) return;
  const stop = c.stops.descriptor;
  stop.table = DESCRIPTOR_TABLE[table];
  stop.write = write;
  c.stop = stop;
  throw STOP;
}

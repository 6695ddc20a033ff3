import { VECTOR } from '../../../abi/x86.ts';
import { goOn } from './branch.ts';
import { EFER, FLAG, SYSTEM_FLAGS } from './constants.ts';
import type { Cpu } from './cpu.ts';
import { checkCodeSegment, isLong, loadDataSegment, setCodeSegment } from './descriptors.ts';
import { getFlags, setArithmeticFlags, setFlags } from './flags.ts';
import { read16, read32, read64 } from './mmu.ts';
import type { Op, Run } from './op.ts';
import { address, advanceAddress } from './operand.ts';
import { raise, requireRing0, undefinedOpcode } from './raise.ts';
import { CS, DS, ES, FS, GS, R11, RCX, RSP, SEGMENT_BASE, SS } from './slots.ts';
import { moveStack, nativeSize, peekNative, pushNative, setFlagsAs } from './stack.ts';
import { isCanonical } from './wide.ts';

/* Transfers of control that change cs: far jumps and returns, IRET, SYSCALL, SYSRET. */

/** Goes to another code segment of the same privilege. */
function farJump(c: Cpu, selector: number, lo: number, hi: number): void {
  const d = checkCodeSegment(c, selector, c.cpl);
  setCodeSegment(c, selector, d, c.cpl);
  c.ripLo = lo;
  c.ripHi = c.mode64 ? hi : 0;
}

/** JMP ptr16:32, in 32-bit code. */
export const jumpFarImmediate: Run = (c, op) => farJump(c, op.immHi, op.imm, 0);

/** The rest of the far pointer that was read last: the upper half of its offset, and its selector. */
let farHi = 0;
let farSelector = 0;

/** Reads a far pointer: the low half of its offset, whose size in bytes is op.src. */
function readFarPointer(c: Cpu, op: Op): number {
  address(c, op);
  const lo = op.src === 8 ? read64(c, c.eaLo, c.eaHi) : read32(c, c.eaLo, c.eaHi);
  farHi = op.src === 8 ? c.hi : 0;
  advanceAddress(c, op.src);
  farSelector = read16(c, c.eaLo, c.eaHi);
  return lo;
}

/** JMP m16:32 or m16:64; op.src is the size of the offset in bytes. */
export const jumpFarMemory: Run = (c, op) => {
  const lo = readFarPointer(c, op);
  farJump(c, farSelector, lo, farHi);
};

/** CALL m16:32 or m16:64 within the same privilege. */
export const callFarMemory: Run = (c, op) => {
  const lo = readFarPointer(c, op);
  const [hi, selector] = [farHi, farSelector];
  checkCodeSegment(c, selector, c.cpl);
  goOn(c, op);
  const { ripLo, ripHi } = c;
  pushNative(c, c.segments[CS]!.selector, 0);
  try {
    pushNative(c, ripLo, ripHi);
  } catch (signal) {
    moveStack(c, nativeSize(c));
    throw signal;
  }
  farJump(c, selector, lo, hi);
};

/** RETF, with op.src bytes a stack slot and op.imm more bytes dropped. */
export const retFar: Run = (c, op) => {
  const lo = readSlot(c, 0, op.src);
  const { hi } = c;
  const selector = readSlot(c, op.src, op.src) & 0xffff;
  if ((selector & 3) < c.cpl) raise(c, VECTOR.GP, selector & 0xfffc);
  if ((selector & 3) > c.cpl) {
    returnToUser(c, selector, lo, hi, 2 * op.src + op.imm, op.src, undefined);
    return;
  }
  const d = checkCodeSegment(c, selector, c.cpl);
  moveStack(c, 2 * op.src + op.imm);
  setCodeSegment(c, selector, d, c.cpl);
  c.ripLo = lo;
  c.ripHi = c.mode64 ? hi : 0;
};

/** A stack slot of `size` bytes; the upper half of 8 is in c.hi. */
function readSlot(c: Cpu, offset: number, size: number): number {
  if (size === 8) return peekNative(c, offset);
  const { r } = c;
  const lo = (r[RSP]! + offset) | 0;
  const hi = c.mode64 ? (r[RSP + 1]! + (lo >>> 0 < r[RSP]! >>> 0 ? 1 : 0)) | 0 : 0;
  const value = read32(c, c.mode64 ? lo : (lo + r[SEGMENT_BASE + 2 * SS]!) | 0, hi);
  c.hi = 0;
  return value;
}

/** The part of IRET and RETF that goes to a lower privilege: rsp and ss come from the stack too. */
function returnToUser(
  c: Cpu,
  selector: number,
  lo: number,
  hi: number,
  at: number,
  size: number,
  flags: number | undefined,
): void {
  const rsp = readSlot(c, at, size);
  const rspHi = c.hi;
  const ss = readSlot(c, at + size, size) & 0xffff;
  const cpl = selector & 3;
  const d = { ...checkCodeSegment(c, selector, cpl) };
  if (!isCanonical(hi)) raise(c, VECTOR.GP, 0);
  const before = c.cpl;
  // The new stack segment is checked with the new privilege.
  c.cpl = cpl;
  const wasMode64 = c.mode64;
  c.mode64 = c.longMode && isLong(d);
  try {
    loadDataSegment(c, SS, ss);
  } catch (signal) {
    c.cpl = before;
    c.mode64 = wasMode64;
    throw signal;
  }
  c.cpl = before;
  if (flags !== undefined) setFlagsAs(c, flags, -1);
  setCodeSegment(c, selector, d, cpl);
  c.r[RSP] = rsp;
  c.r[RSP + 1] = rspHi;
  c.ripLo = lo;
  c.ripHi = c.mode64 ? hi : 0;
  if (cpl > before) dropPrivilegedSegments(c);
}

/** Data segments that the new privilege may not use become null. */
function dropPrivilegedSegments(c: Cpu): void {
  for (const segment of [ES, DS, FS, GS]) {
    const { present, dpl, type } = c.segments[segment]!;
    const conforming = (type & 12) === 12;
    if (present && dpl < c.cpl && !conforming) {
      c.segments[segment]!.setNull(0, 0);
      c.r[SEGMENT_BASE + 2 * segment] = 0;
      c.r[SEGMENT_BASE + 2 * segment + 1] = 0;
    }
  }
}

/** IRET in long mode; op.src is the size of a stack slot. Elsewhere it does not exist here. */
export const iret: Run = (c, op) => {
  if (!c.longMode) undefinedOpcode(c);
  if ((c.systemFlags & FLAG.NT) !== 0) raise(c, VECTOR.GP, 0);
  const size = op.src;
  const lo = readSlot(c, 0, size);
  const { hi } = c;
  const selector = readSlot(c, size, size) & 0xffff;
  const flags = readSlot(c, 2 * size, size);
  const rpl = selector & 3;
  if (rpl < c.cpl) raise(c, VECTOR.GP, selector & 0xfffc);
  if (c.mode64 || rpl > c.cpl) {
    returnToUser(c, selector, lo, hi, 3 * size, size, flags);
    return;
  }
  const d = checkCodeSegment(c, selector, c.cpl);
  moveStack(c, 3 * size);
  setFlagsAs(c, flags, -1);
  setCodeSegment(c, selector, d, c.cpl);
  c.ripLo = lo;
  c.ripHi = hi;
};

/** Loads cs and ss with the fixed contents that SYSCALL and SYSRET give them. */
function setFlatSegments(c: Cpu, cs: number, ss: number, cpl: number, long: boolean): void {
  c.segments[CS]!.setFlat(cs, 11, cpl, long);
  c.segments[SS]!.setFlat(ss, 3, cpl, false);
  for (const segment of [CS, SS]) {
    c.r[SEGMENT_BASE + 2 * segment] = 0;
    c.r[SEGMENT_BASE + 2 * segment + 1] = 0;
  }
  c.setCpl(cpl);
  c.updateMode();
}

export const syscall: Run = (c, op) => {
  if ((c.efer & EFER.SCE) === 0 || !c.longMode) undefinedOpcode(c);
  const { r, msrs } = c;
  goOn(c, op);
  const from64 = c.mode64;
  const flags = getFlags(c) & ~FLAG.RF;
  r[RCX] = c.ripLo;
  r[RCX + 1] = c.ripHi;
  r[R11] = flags;
  r[R11 + 1] = 0;
  setFlags(c, flags & ~msrs.fmaskLo);
  const selector = msrs.starHi & 0xfffc;
  setFlatSegments(c, selector, selector + 8, 0, true);
  c.ripLo = from64 ? msrs.lstarLo : msrs.cstarLo;
  c.ripHi = from64 ? msrs.lstarHi : msrs.cstarHi;
};

/** SYSRET; op.src is 8 for a return to 64-bit code. */
export const sysret: Run = (c, op) => {
  if ((c.efer & EFER.SCE) === 0 || !c.longMode) undefinedOpcode(c);
  requireRing0(c);
  const { r, msrs } = c;
  if (op.src === 8 && !isCanonical(r[RCX + 1]!)) raise(c, VECTOR.GP, 0);
  const lo = r[RCX]!;
  const hi = op.src === 8 ? r[RCX + 1]! : 0;
  setArithmeticFlags(c, r[R11]!);
  c.setSystemFlags(r[R11]! & SYSTEM_FLAGS & ~FLAG.RF);
  const selector = (msrs.starHi >>> 16) & 0xffff;
  setFlatSegments(
    c,
    ((selector + (op.src === 8 ? 16 : 0)) & 0xffff) | 3,
    ((selector + 8) & 0xffff) | 3,
    3,
    op.src === 8,
  );
  c.ripLo = lo;
  c.ripHi = hi;
};

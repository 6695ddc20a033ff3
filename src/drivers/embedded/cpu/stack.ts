import { VECTOR } from '../../../abi/x86.ts';
import { ARITHMETIC_FLAGS, CR4, FLAG, SYSTEM_FLAGS } from './constants.ts';
import type { Cpu } from './cpu.ts';
import { getFlags, setArithmeticFlags } from './flags.ts';
import { read16, read32, read64, write16, write32, write64 } from './mmu.ts';
import type { Op, Run } from './op.ts';
import { address, load16, load32, load64 } from './operand.ts';
import { raise } from './raise.ts';
import { RBP, RSP, SEGMENT_BASE, SS } from './slots.ts';

/*
 * The stack: 64-bit in 64-bit code, 32-bit with the base of ss elsewhere. `push` and `pop` work on values of the
 * operand size of the instruction; rsp changes after the memory access.
 */

const SS_BASE = SEGMENT_BASE + 2 * SS;

/** Computes the address of the stack `offset` bytes above rsp into c.eaLo/c.eaHi. */
function stackAddress(c: Cpu, offset: number): void {
  const { r } = c;
  const lo = (r[RSP]! + offset) | 0;
  if (!c.mode64) {
    c.eaLo = (lo + r[SS_BASE]!) | 0;
    c.eaHi = 0;
    return;
  }
  c.eaLo = lo;
  c.eaHi = r[RSP + 1]!;
  if (offset < 0 ? lo >>> 0 > r[RSP]! >>> 0 : lo >>> 0 < r[RSP]! >>> 0) {
    c.eaHi = (c.eaHi + (offset < 0 ? -1 : 1)) | 0;
  }
}

/** Moves rsp by a few bytes. */
export function moveStack(c: Cpu, offset: number): void {
  const { r } = c;
  const old = r[RSP]!;
  const lo = (old + offset) | 0;
  r[RSP] = lo;
  if (!c.mode64) r[RSP + 1] = 0;
  else if (offset < 0 ? lo >>> 0 > old >>> 0 : lo >>> 0 < old >>> 0) {
    r[RSP + 1] = (r[RSP + 1]! + (offset < 0 ? -1 : 1)) | 0;
  }
}

function push16(c: Cpu, value: number): void {
  stackAddress(c, -2);
  write16(c, c.eaLo, c.eaHi, value);
  moveStack(c, -2);
}

function push32(c: Cpu, value: number): void {
  stackAddress(c, -4);
  write32(c, c.eaLo, c.eaHi, value);
  moveStack(c, -4);
}

function push64(c: Cpu, lo: number, hi: number): void {
  stackAddress(c, -8);
  write64(c, c.eaLo, c.eaHi, lo, hi);
  moveStack(c, -8);
}

/** Pushes 64 bits in 64-bit code, the lower 32 elsewhere. */
export function pushNative(c: Cpu, lo: number, hi: number): void {
  if (c.mode64) push64(c, lo, hi);
  else push32(c, lo);
}

/** Bytes of a stack slot that holds an address. */
export function nativeSize(c: Cpu): number {
  return c.mode64 ? 8 : 4;
}

/** The address-sized value `offset` bytes above rsp; its high half is in c.hi. rsp does not change. */
export function peekNative(c: Cpu, offset: number): number {
  stackAddress(c, offset);
  if (c.mode64) return read64(c, c.eaLo, c.eaHi);
  c.hi = 0;
  return read32(c, c.eaLo, c.eaHi);
}

/** PUSH and POP by what the operand is: one handler for 16 bits, one for the native size of the code. */
export interface StackForms {
  readonly w: Run;
  readonly native: Run;
}

export const PUSH_REGISTER: StackForms = {
  w: (c, op) => push16(c, c.r16[op.src]!),
  native: (c, op) => pushNative(c, c.r[op.src]!, c.r[op.src + 1]!),
};

export const PUSH_IMMEDIATE: StackForms = {
  w: (c, op) => push16(c, op.imm),
  native: (c, op) => pushNative(c, op.imm, op.immHi),
};

export const PUSH_MEMORY: StackForms = {
  w: (c, op) => push16(c, load16(c, op)),
  native: (c, op) => {
    if (!c.mode64) {
      push32(c, load32(c, op));
      return;
    }
    const lo = load64(c, op);
    push64(c, lo, c.hi);
  },
};

export const POP_REGISTER: StackForms = {
  w: (c, op) => {
    stackAddress(c, 0);
    const value = read16(c, c.eaLo, c.eaHi);
    moveStack(c, 2);
    c.r16[op.dst] = value;
  },
  native: (c, op) => {
    const lo = peekNative(c, 0);
    moveStack(c, nativeSize(c));
    c.r[op.dst] = lo;
    c.r[op.dst + 1] = c.hi;
  },
};

/** The address of the destination is computed with the rsp after the pop. */
function popToMemory(c: Cpu, op: Op, size: number, store: (lo: number, hi: number) => void): void {
  let lo: number;
  if (size === 2) {
    stackAddress(c, 0);
    lo = read16(c, c.eaLo, c.eaHi);
  } else lo = peekNative(c, 0);
  const { hi } = c;
  moveStack(c, size);
  try {
    address(c, op);
    store(lo, hi);
  } catch (signal) {
    moveStack(c, -size);
    throw signal;
  }
}

export const POP_MEMORY: StackForms = {
  w: (c, op) => popToMemory(c, op, 2, (lo) => write16(c, c.eaLo, c.eaHi, lo)),
  native: (c, op) =>
    popToMemory(c, op, nativeSize(c), (lo, hi) => {
      if (c.mode64) write64(c, c.eaLo, c.eaHi, lo, hi);
      else write32(c, c.eaLo, c.eaHi, lo);
    }),
};

export const PUSHF: StackForms = {
  w: (c) => push16(c, getFlags(c)),
  native: (c) => pushNative(c, getFlags(c) & ~(FLAG.RF | FLAG.VM), 0),
};

/** Sets rflags as POPF and IRET may at the current privilege: IOPL in ring 0 only, IF where IOPL allows it. */
export function setFlagsAs(c: Cpu, flags: number, mask: number): void {
  setArithmeticFlags(c, flags & ARITHMETIC_FLAGS);
  const iopl = (c.systemFlags >> 12) & 3;
  let changeable = SYSTEM_FLAGS & mask & ~FLAG.RF;
  if (c.cpl > 0) changeable &= ~FLAG.IOPL;
  if (c.cpl > iopl) changeable &= ~FLAG.IF;
  c.setSystemFlags((c.systemFlags & ~(changeable | FLAG.RF)) | (flags & changeable));
}

export const POPF: StackForms = {
  w: (c) => {
    stackAddress(c, 0);
    const flags = read16(c, c.eaLo, c.eaHi);
    moveStack(c, 2);
    setFlagsAs(c, flags, 0xffff);
  },
  native: (c) => {
    const flags = peekNative(c, 0);
    moveStack(c, nativeSize(c));
    setFlagsAs(c, flags, -1);
  },
};

export const leave: Run = (c) => {
  const { r } = c;
  const lo = r[RBP]!;
  const hi = r[RBP + 1]!;
  const value = c.mode64 ? read64(c, lo, hi) : read32(c, (lo + r[SS_BASE]!) | 0, 0);
  const valueHi = c.mode64 ? c.hi : 0;
  r[RSP] = lo;
  r[RSP + 1] = hi;
  moveStack(c, nativeSize(c));
  r[RBP] = value;
  r[RBP + 1] = valueHi;
};

/** ENTER without nesting: op.imm is the size of the frame. Nested frames are not supported (#UD). */
export const enter: Run = (c, op) => {
  const { r } = c;
  if ((op.immHi & 31) !== 0) raise(c, VECTOR.UD);
  pushNative(c, r[RBP]!, r[RBP + 1]!);
  r[RBP] = r[RSP]!;
  r[RBP + 1] = r[RSP + 1]!;
  moveStack(c, -op.imm);
};

/** Whether a system instruction is hidden from ring 3 (CR4.UMIP). */
export function hiddenFromUser(c: Cpu): boolean {
  return c.cpl === 3 && (c.cr4 & CR4.UMIP) !== 0;
}

import type { Cpu } from './cpu.ts';
import { condition } from './flags.ts';
import type { Op, Run } from './op.ts';
import { load32, load64 } from './operand.ts';
import { CODE_BASE, RCX } from './slots.ts';
import { moveStack, nativeSize, peekNative, pushNative } from './stack.ts';

/*
 * Near branches. Every handler here sets rip itself. The displacement of a relative branch counts from the page
 * of the code, not from the instruction.
 */

/** Sets rip to a position relative to the page of code. */
function goTo(c: Cpu, offset: number, offsetHi: number): void {
  const base = c.r[CODE_BASE]!;
  const lo = (base + offset) | 0;
  c.ripLo = lo;
  c.ripHi = c.mode64 ? (c.r[CODE_BASE + 1]! + offsetHi + (lo >>> 0 < base >>> 0 ? 1 : 0)) | 0 : 0;
}

/** Sets rip to the instruction after `op`. */
export function goOn(c: Cpu, op: Op): void {
  goTo(c, op.next, 0);
}

/** Sets rip back to `op`. */
export function goBack(c: Cpu, op: Op): void {
  goTo(c, op.start, 0);
}

function setRip(c: Cpu, lo: number, hi: number): void {
  c.ripLo = lo;
  c.ripHi = c.mode64 ? hi : 0;
}

export const jump: Run = (c, op) => goTo(c, op.disp, op.dispHi);

export const jumpRegister: Run = (c, op) => setRip(c, c.r[op.dst]!, c.r[op.dst + 1]!);

export const jumpMemory: Run = (c, op) => {
  const lo = c.mode64 ? load64(c, op) : load32(c, op);
  setRip(c, lo, c.hi);
};

/** Jcc: the condition is op.kind. */
export const jumpIf: Run = (c, op) => {
  if (condition(c, op.kind)) goTo(c, op.disp, op.dispHi);
  else goOn(c, op);
};

/** Pushes the address behind `op`, leaving rip where it is. */
function pushReturn(c: Cpu, op: Op): void {
  goOn(c, op);
  pushNative(c, c.ripLo, c.ripHi);
}

export const call: Run = (c, op) => {
  pushReturn(c, op);
  goTo(c, op.disp, op.dispHi);
};

export const callRegister: Run = (c, op) => {
  const lo = c.r[op.dst]!;
  const hi = c.r[op.dst + 1]!;
  pushReturn(c, op);
  setRip(c, lo, hi);
};

export const callMemory: Run = (c, op) => {
  const lo = c.mode64 ? load64(c, op) : load32(c, op);
  const { hi } = c;
  pushReturn(c, op);
  setRip(c, lo, hi);
};

/** RET: op.imm more bytes are dropped from the stack. */
export const ret: Run = (c, op) => {
  const lo = peekNative(c, 0);
  const { hi } = c;
  moveStack(c, nativeSize(c) + op.imm);
  setRip(c, lo, hi);
};

/** Counts (e)cx down, with the address size of the instruction; false when it is 0 then. */
function countDown(c: Cpu, op: Op): boolean {
  const { r } = c;
  const lo = (r[RCX]! - 1) | 0;
  if (op.address32 !== 0) r[RCX + 1] = 0;
  else if (lo === -1) r[RCX + 1] = (r[RCX + 1]! - 1) | 0;
  r[RCX] = lo;
  return (lo | r[RCX + 1]!) !== 0;
}

function loopIf(test: (c: Cpu) => boolean): Run {
  return (c, op) => {
    if (countDown(c, op) && test(c)) goTo(c, op.disp, op.dispHi);
    else goOn(c, op);
  };
}

/** LOOPNE, LOOPE, LOOP and JRCXZ, in the order of their opcodes. */
export const LOOPS: readonly Run[] = [
  loopIf((c) => c.zr !== 0),
  loopIf((c) => c.zr === 0),
  loopIf(() => true),
  (c, op) => {
    const zero = c.r[RCX] === 0 && (op.address32 !== 0 || c.r[RCX + 1] === 0);
    if (zero) goTo(c, op.disp, op.dispHi);
    else goOn(c, op);
  },
];

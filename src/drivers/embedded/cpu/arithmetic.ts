import { compute8, compute16, compute32, compute64, unary8, unary16, unary32, unary64 } from './alu.ts';
import type { Cpu } from './cpu.ts';
import { modify8, modify16, modify32, modify64, store8, store16, store32, store64 } from './mmu.ts';
import type { Op, SizedRun } from './op.ts';
import { address, load8, load16, load32, load64 } from './operand.ts';
import { shift8, shift16, shift32, shift64 } from './shift.ts';
import { RCX } from './slots.ts';

/** A two-operand instruction by where its operands are: destination, then source. */
export interface BinaryForms {
  readonly registerRegister: SizedRun;
  readonly registerMemory: SizedRun;
  readonly memoryRegister: SizedRun;
  readonly registerImmediate: SizedRun;
  readonly memoryImmediate: SizedRun;
}

/** A one-operand instruction by where its operand is. */
export interface UnaryForms {
  readonly register: SizedRun;
  readonly memory: SizedRun;
}

/** ADD, OR, ADC, SBB, AND, SUB and XOR: op.kind is one of ALU. */
export const BINARY: BinaryForms = {
  registerRegister: {
    b: (c, op) => {
      c.r8[op.dst] = compute8(c, op.kind, c.r8[op.dst]!, c.r8[op.src]!);
    },
    w: (c, op) => {
      c.r16[op.dst] = compute16(c, op.kind, c.r16[op.dst]!, c.r16[op.src]!);
    },
    d: (c, op) => {
      const { r } = c;
      r[op.dst] = compute32(c, op.kind, r[op.dst]!, r[op.src]!);
      r[op.dst + 1] = 0;
    },
    q: (c, op) => {
      const { r } = c;
      r[op.dst] = compute64(c, op.kind, r[op.dst]!, r[op.dst + 1]!, r[op.src]!, r[op.src + 1]!);
      r[op.dst + 1] = c.hi;
    },
  },
  registerMemory: {
    b: (c, op) => {
      const value = load8(c, op);
      c.r8[op.dst] = compute8(c, op.kind, c.r8[op.dst]!, value);
    },
    w: (c, op) => {
      const value = load16(c, op);
      c.r16[op.dst] = compute16(c, op.kind, c.r16[op.dst]!, value);
    },
    d: (c, op) => {
      const { r } = c;
      const value = load32(c, op);
      r[op.dst] = compute32(c, op.kind, r[op.dst]!, value);
      r[op.dst + 1] = 0;
    },
    q: (c, op) => {
      const { r } = c;
      const lo = load64(c, op);
      r[op.dst] = compute64(c, op.kind, r[op.dst]!, r[op.dst + 1]!, lo, c.hi);
      r[op.dst + 1] = c.hi;
    },
  },
  memoryRegister: {
    b: (c, op) => {
      address(c, op);
      const value = modify8(c);
      store8(c, compute8(c, op.kind, value, c.r8[op.src]!));
    },
    w: (c, op) => {
      address(c, op);
      const value = modify16(c);
      store16(c, compute16(c, op.kind, value, c.r16[op.src]!));
    },
    d: (c, op) => {
      address(c, op);
      const value = modify32(c);
      store32(c, compute32(c, op.kind, value, c.r[op.src]!));
    },
    q: (c, op) => {
      address(c, op);
      const lo = modify64(c);
      const result = compute64(c, op.kind, lo, c.hi, c.r[op.src]!, c.r[op.src + 1]!);
      store64(c, result, c.hi);
    },
  },
  registerImmediate: {
    b: (c, op) => {
      c.r8[op.dst] = compute8(c, op.kind, c.r8[op.dst]!, op.imm);
    },
    w: (c, op) => {
      c.r16[op.dst] = compute16(c, op.kind, c.r16[op.dst]!, op.imm);
    },
    d: (c, op) => {
      const { r } = c;
      r[op.dst] = compute32(c, op.kind, r[op.dst]!, op.imm);
      r[op.dst + 1] = 0;
    },
    q: (c, op) => {
      const { r } = c;
      r[op.dst] = compute64(c, op.kind, r[op.dst]!, r[op.dst + 1]!, op.imm, op.immHi);
      r[op.dst + 1] = c.hi;
    },
  },
  memoryImmediate: {
    b: (c, op) => {
      address(c, op);
      const value = modify8(c);
      store8(c, compute8(c, op.kind, value, op.imm));
    },
    w: (c, op) => {
      address(c, op);
      const value = modify16(c);
      store16(c, compute16(c, op.kind, value, op.imm));
    },
    d: (c, op) => {
      address(c, op);
      const value = modify32(c);
      store32(c, compute32(c, op.kind, value, op.imm));
    },
    q: (c, op) => {
      address(c, op);
      const lo = modify64(c);
      const result = compute64(c, op.kind, lo, c.hi, op.imm, op.immHi);
      store64(c, result, c.hi);
    },
  },
};

/** CMP and TEST: only the flags of the result are kept. */
export const COMPARE: BinaryForms = {
  registerRegister: {
    b: (c, op) => {
      compute8(c, op.kind, c.r8[op.dst]!, c.r8[op.src]!);
    },
    w: (c, op) => {
      compute16(c, op.kind, c.r16[op.dst]!, c.r16[op.src]!);
    },
    d: (c, op) => {
      compute32(c, op.kind, c.r[op.dst]!, c.r[op.src]!);
    },
    q: (c, op) => {
      const { r } = c;
      compute64(c, op.kind, r[op.dst]!, r[op.dst + 1]!, r[op.src]!, r[op.src + 1]!);
    },
  },
  registerMemory: {
    b: (c, op) => {
      const value = load8(c, op);
      compute8(c, op.kind, c.r8[op.dst]!, value);
    },
    w: (c, op) => {
      const value = load16(c, op);
      compute16(c, op.kind, c.r16[op.dst]!, value);
    },
    d: (c, op) => {
      const value = load32(c, op);
      compute32(c, op.kind, c.r[op.dst]!, value);
    },
    q: (c, op) => {
      const lo = load64(c, op);
      compute64(c, op.kind, c.r[op.dst]!, c.r[op.dst + 1]!, lo, c.hi);
    },
  },
  memoryRegister: {
    b: (c, op) => {
      const value = load8(c, op);
      compute8(c, op.kind, value, c.r8[op.src]!);
    },
    w: (c, op) => {
      const value = load16(c, op);
      compute16(c, op.kind, value, c.r16[op.src]!);
    },
    d: (c, op) => {
      const value = load32(c, op);
      compute32(c, op.kind, value, c.r[op.src]!);
    },
    q: (c, op) => {
      const lo = load64(c, op);
      compute64(c, op.kind, lo, c.hi, c.r[op.src]!, c.r[op.src + 1]!);
    },
  },
  registerImmediate: {
    b: (c, op) => {
      compute8(c, op.kind, c.r8[op.dst]!, op.imm);
    },
    w: (c, op) => {
      compute16(c, op.kind, c.r16[op.dst]!, op.imm);
    },
    d: (c, op) => {
      compute32(c, op.kind, c.r[op.dst]!, op.imm);
    },
    q: (c, op) => {
      compute64(c, op.kind, c.r[op.dst]!, c.r[op.dst + 1]!, op.imm, op.immHi);
    },
  },
  memoryImmediate: {
    b: (c, op) => {
      const value = load8(c, op);
      compute8(c, op.kind, value, op.imm);
    },
    w: (c, op) => {
      const value = load16(c, op);
      compute16(c, op.kind, value, op.imm);
    },
    d: (c, op) => {
      const value = load32(c, op);
      compute32(c, op.kind, value, op.imm);
    },
    q: (c, op) => {
      const lo = load64(c, op);
      compute64(c, op.kind, lo, c.hi, op.imm, op.immHi);
    },
  },
};

/** INC, DEC, NEG and NOT: op.kind is one of UNARY. */
export const UNARY_FORMS: UnaryForms = {
  register: {
    b: (c, op) => {
      c.r8[op.dst] = unary8(c, op.kind, c.r8[op.dst]!);
    },
    w: (c, op) => {
      c.r16[op.dst] = unary16(c, op.kind, c.r16[op.dst]!);
    },
    d: (c, op) => {
      const { r } = c;
      r[op.dst] = unary32(c, op.kind, r[op.dst]!);
      r[op.dst + 1] = 0;
    },
    q: (c, op) => {
      const { r } = c;
      r[op.dst] = unary64(c, op.kind, r[op.dst]!, r[op.dst + 1]!);
      r[op.dst + 1] = c.hi;
    },
  },
  memory: {
    b: (c, op) => {
      address(c, op);
      const value = modify8(c);
      store8(c, unary8(c, op.kind, value));
    },
    w: (c, op) => {
      address(c, op);
      const value = modify16(c);
      store16(c, unary16(c, op.kind, value));
    },
    d: (c, op) => {
      address(c, op);
      const value = modify32(c);
      store32(c, unary32(c, op.kind, value));
    },
    q: (c, op) => {
      address(c, op);
      const lo = modify64(c);
      const result = unary64(c, op.kind, lo, c.hi);
      store64(c, result, c.hi);
    },
  },
};

/** How far a shift shifts: by the immediate, or by cl when op.src says so. */
function count(c: Cpu, op: Op): number {
  return op.src === 0 ? op.imm : c.r[RCX]!;
}

/** Shifts and rotates: op.kind is one of SHIFT. */
export const SHIFT_FORMS: UnaryForms = {
  register: {
    b: (c, op) => {
      c.r8[op.dst] = shift8(c, op.kind, c.r8[op.dst]!, count(c, op) & 31);
    },
    w: (c, op) => {
      c.r16[op.dst] = shift16(c, op.kind, c.r16[op.dst]!, count(c, op) & 31);
    },
    d: (c, op) => {
      const { r } = c;
      r[op.dst] = shift32(c, op.kind, r[op.dst]!, count(c, op) & 31);
      r[op.dst + 1] = 0;
    },
    q: (c, op) => {
      const { r } = c;
      r[op.dst] = shift64(c, op.kind, r[op.dst]!, r[op.dst + 1]!, count(c, op) & 63);
      r[op.dst + 1] = c.hi;
    },
  },
  memory: {
    b: (c, op) => {
      address(c, op);
      const value = modify8(c);
      store8(c, shift8(c, op.kind, value, count(c, op) & 31));
    },
    w: (c, op) => {
      address(c, op);
      const value = modify16(c);
      store16(c, shift16(c, op.kind, value, count(c, op) & 31));
    },
    d: (c, op) => {
      address(c, op);
      const value = modify32(c);
      store32(c, shift32(c, op.kind, value, count(c, op) & 31));
    },
    q: (c, op) => {
      address(c, op);
      const lo = modify64(c);
      const result = shift64(c, op.kind, lo, c.hi, count(c, op) & 63);
      store64(c, result, c.hi);
    },
  },
};

import type { Binary, Binary64, Sized, Unary, Unary64 } from './alu.ts';
import type { Cpu } from './cpu.ts';
import { modify8, modify16, modify32, modify64, store8, store16, store32, store64 } from './mmu.ts';
import type { Op, Run } from './op.ts';
import { address, load8, load16, load32, load64 } from './operand.ts';

/** A handler for each operand size. */
export type SizedRun = Sized<Run, Run>;

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

/** ADD, OR, ADC, SBB, AND, SUB and XOR. */
export function binary({ b, w, d, q }: Sized<Binary, Binary64>): BinaryForms {
  return {
    registerRegister: {
      b: (c, op) => {
        c.r8[op.dst] = b(c, c.r8[op.dst]!, c.r8[op.src]!);
      },
      w: (c, op) => {
        c.r16[op.dst] = w(c, c.r16[op.dst]!, c.r16[op.src]!);
      },
      d: (c, op) => {
        const { r } = c;
        r[op.dst] = d(c, r[op.dst]!, r[op.src]!);
        r[op.dst + 1] = 0;
      },
      q: (c, op) => {
        const { r } = c;
        r[op.dst] = q(c, r[op.dst]!, r[op.dst + 1]!, r[op.src]!, r[op.src + 1]!);
        r[op.dst + 1] = c.hi;
      },
    },
    registerMemory: {
      b: (c, op) => {
        const value = load8(c, op);
        c.r8[op.dst] = b(c, c.r8[op.dst]!, value);
      },
      w: (c, op) => {
        const value = load16(c, op);
        c.r16[op.dst] = w(c, c.r16[op.dst]!, value);
      },
      d: (c, op) => {
        const { r } = c;
        const value = load32(c, op);
        r[op.dst] = d(c, r[op.dst]!, value);
        r[op.dst + 1] = 0;
      },
      q: (c, op) => {
        const { r } = c;
        const lo = load64(c, op);
        r[op.dst] = q(c, r[op.dst]!, r[op.dst + 1]!, lo, c.hi);
        r[op.dst + 1] = c.hi;
      },
    },
    memoryRegister: {
      b: (c, op) => {
        address(c, op);
        const value = modify8(c);
        store8(c, b(c, value, c.r8[op.src]!));
      },
      w: (c, op) => {
        address(c, op);
        const value = modify16(c);
        store16(c, w(c, value, c.r16[op.src]!));
      },
      d: (c, op) => {
        address(c, op);
        const value = modify32(c);
        store32(c, d(c, value, c.r[op.src]!));
      },
      q: (c, op) => {
        address(c, op);
        const lo = modify64(c);
        const result = q(c, lo, c.hi, c.r[op.src]!, c.r[op.src + 1]!);
        store64(c, result, c.hi);
      },
    },
    registerImmediate: {
      b: (c, op) => {
        c.r8[op.dst] = b(c, c.r8[op.dst]!, op.imm);
      },
      w: (c, op) => {
        c.r16[op.dst] = w(c, c.r16[op.dst]!, op.imm);
      },
      d: (c, op) => {
        const { r } = c;
        r[op.dst] = d(c, r[op.dst]!, op.imm);
        r[op.dst + 1] = 0;
      },
      q: (c, op) => {
        const { r } = c;
        r[op.dst] = q(c, r[op.dst]!, r[op.dst + 1]!, op.imm, op.immHi);
        r[op.dst + 1] = c.hi;
      },
    },
    memoryImmediate: {
      b: (c, op) => {
        address(c, op);
        const value = modify8(c);
        store8(c, b(c, value, op.imm));
      },
      w: (c, op) => {
        address(c, op);
        const value = modify16(c);
        store16(c, w(c, value, op.imm));
      },
      d: (c, op) => {
        address(c, op);
        const value = modify32(c);
        store32(c, d(c, value, op.imm));
      },
      q: (c, op) => {
        address(c, op);
        const lo = modify64(c);
        const result = q(c, lo, c.hi, op.imm, op.immHi);
        store64(c, result, c.hi);
      },
    },
  };
}

/** CMP and TEST: only the flags of the result are kept. */
export function compare({ b, w, d, q }: Sized<Binary, Binary64>): BinaryForms {
  return {
    registerRegister: {
      b: (c, op) => {
        b(c, c.r8[op.dst]!, c.r8[op.src]!);
      },
      w: (c, op) => {
        w(c, c.r16[op.dst]!, c.r16[op.src]!);
      },
      d: (c, op) => {
        d(c, c.r[op.dst]!, c.r[op.src]!);
      },
      q: (c, op) => {
        const { r } = c;
        q(c, r[op.dst]!, r[op.dst + 1]!, r[op.src]!, r[op.src + 1]!);
      },
    },
    registerMemory: {
      b: (c, op) => {
        const value = load8(c, op);
        b(c, c.r8[op.dst]!, value);
      },
      w: (c, op) => {
        const value = load16(c, op);
        w(c, c.r16[op.dst]!, value);
      },
      d: (c, op) => {
        const value = load32(c, op);
        d(c, c.r[op.dst]!, value);
      },
      q: (c, op) => {
        const lo = load64(c, op);
        q(c, c.r[op.dst]!, c.r[op.dst + 1]!, lo, c.hi);
      },
    },
    memoryRegister: {
      b: (c, op) => {
        const value = load8(c, op);
        b(c, value, c.r8[op.src]!);
      },
      w: (c, op) => {
        const value = load16(c, op);
        w(c, value, c.r16[op.src]!);
      },
      d: (c, op) => {
        const value = load32(c, op);
        d(c, value, c.r[op.src]!);
      },
      q: (c, op) => {
        const lo = load64(c, op);
        q(c, lo, c.hi, c.r[op.src]!, c.r[op.src + 1]!);
      },
    },
    registerImmediate: {
      b: (c, op) => {
        b(c, c.r8[op.dst]!, op.imm);
      },
      w: (c, op) => {
        w(c, c.r16[op.dst]!, op.imm);
      },
      d: (c, op) => {
        d(c, c.r[op.dst]!, op.imm);
      },
      q: (c, op) => {
        q(c, c.r[op.dst]!, c.r[op.dst + 1]!, op.imm, op.immHi);
      },
    },
    memoryImmediate: {
      b: (c, op) => {
        const value = load8(c, op);
        b(c, value, op.imm);
      },
      w: (c, op) => {
        const value = load16(c, op);
        w(c, value, op.imm);
      },
      d: (c, op) => {
        const value = load32(c, op);
        d(c, value, op.imm);
      },
      q: (c, op) => {
        const lo = load64(c, op);
        q(c, lo, c.hi, op.imm, op.immHi);
      },
    },
  };
}

/** INC, DEC, NEG and NOT. */
export function unary({ b, w, d, q }: Sized<Unary, Unary64>): UnaryForms {
  return modifying({ b, w, d, q });
}

/** How many bits a shift shifts by; the handler masks it. */
export type Count = (c: Cpu, op: Op) => number;
type Counted = (c: Cpu, a: number, count: number) => number;
type Counted64 = (c: Cpu, al: number, ah: number, count: number) => number;

/** Shifts and rotates by a count. */
export function shifting({ b, w, d, q }: Sized<Counted, Counted64>, count: Count): UnaryForms {
  return modifying({
    b: (c, a, op) => b(c, a, count(c, op) & 31),
    w: (c, a, op) => w(c, a, count(c, op) & 31),
    d: (c, a, op) => d(c, a, count(c, op) & 31),
    q: (c, al, ah, op) => q(c, al, ah, count(c, op) & 63),
  });
}

type Modify = (c: Cpu, a: number, op: Op) => number;
type Modify64 = (c: Cpu, al: number, ah: number, op: Op) => number;

/** Instructions that change one operand. */
export function modifying({ b, w, d, q }: Sized<Modify, Modify64>): UnaryForms {
  return {
    register: {
      b: (c, op) => {
        c.r8[op.dst] = b(c, c.r8[op.dst]!, op);
      },
      w: (c, op) => {
        c.r16[op.dst] = w(c, c.r16[op.dst]!, op);
      },
      d: (c, op) => {
        c.r[op.dst] = d(c, c.r[op.dst]!, op);
        c.r[op.dst + 1] = 0;
      },
      q: (c, op) => {
        c.r[op.dst] = q(c, c.r[op.dst]!, c.r[op.dst + 1]!, op);
        c.r[op.dst + 1] = c.hi;
      },
    },
    memory: {
      b: (c, op) => {
        address(c, op);
        const value = modify8(c);
        store8(c, b(c, value, op));
      },
      w: (c, op) => {
        address(c, op);
        const value = modify16(c);
        store16(c, w(c, value, op));
      },
      d: (c, op) => {
        address(c, op);
        const value = modify32(c);
        store32(c, d(c, value, op));
      },
      q: (c, op) => {
        address(c, op);
        const lo = modify64(c);
        const result = q(c, lo, c.hi, op);
        store64(c, result, c.hi);
      },
    },
  };
}

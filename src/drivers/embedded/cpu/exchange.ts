import { VECTOR } from '../../../abi/x86.ts';
import { ALU, compute8, compute16, compute32, compute64 } from './alu.ts';
import type { Cpu } from './cpu.ts';
import {
  modify8,
  modify16,
  modify32,
  modify64,
  read64,
  store8,
  store16,
  store32,
  store64,
  write64,
} from './mmu.ts';
import type { ExtendForms } from './move.ts';
import type { Run, SizedRun } from './op.ts';
import { address } from './operand.ts';
import { raise } from './raise.ts';
import { RAX, RBX, RCX, RDX } from './slots.ts';

/*
 * Compare-and-exchange and exchange-and-add. One vCPU runs at a time, so every instruction is atomic and LOCK has
 * nothing to do.
 */

/** XADD: the sum to op.dst or memory, what was there to op.src. */
export const XADD: ExtendForms = {
  register: {
    b: (c, op) => {
      const value = c.r8[op.dst]!;
      const sum = compute8(c, ALU.add, value, c.r8[op.src]!);
      c.r8[op.src] = value;
      c.r8[op.dst] = sum;
    },
    w: (c, op) => {
      const value = c.r16[op.dst]!;
      const sum = compute16(c, ALU.add, value, c.r16[op.src]!);
      c.r16[op.src] = value;
      c.r16[op.dst] = sum;
    },
    d: (c, op) => {
      const { r } = c;
      const value = r[op.dst]!;
      const sum = compute32(c, ALU.add, value, r[op.src]!);
      r[op.src] = value;
      r[op.src + 1] = 0;
      r[op.dst] = sum;
      r[op.dst + 1] = 0;
    },
    q: (c, op) => {
      const { r } = c;
      const lo = r[op.dst]!;
      const hi = r[op.dst + 1]!;
      const sum = compute64(c, ALU.add, lo, hi, r[op.src]!, r[op.src + 1]!);
      r[op.src] = lo;
      r[op.src + 1] = hi;
      r[op.dst] = sum;
      r[op.dst + 1] = c.hi;
    },
  },
  memory: {
    b: (c, op) => {
      address(c, op);
      const value = modify8(c);
      store8(c, compute8(c, ALU.add, value, c.r8[op.src]!));
      c.r8[op.src] = value;
    },
    w: (c, op) => {
      address(c, op);
      const value = modify16(c);
      store16(c, compute16(c, ALU.add, value, c.r16[op.src]!));
      c.r16[op.src] = value;
    },
    d: (c, op) => {
      address(c, op);
      const value = modify32(c);
      store32(c, compute32(c, ALU.add, value, c.r[op.src]!));
      c.r[op.src] = value;
      c.r[op.src + 1] = 0;
    },
    q: (c, op) => {
      address(c, op);
      const lo = modify64(c);
      const { hi } = c;
      const sum = compute64(c, ALU.add, lo, hi, c.r[op.src]!, c.r[op.src + 1]!);
      store64(c, sum, c.hi);
      c.r[op.src] = lo;
      c.r[op.src + 1] = hi;
    },
  },
};

/** Takes the value that was found into eax when it was not the one expected. */
function setEax(c: Cpu, value: number): void {
  c.r[RAX] = value;
  c.r[RAX + 1] = 0;
}

const cmpxchgRegister: SizedRun = {
  b: (c, op) => {
    const value = c.r8[op.dst]!;
    compute8(c, ALU.sub, c.r8[4 * RAX]!, value);
    if (c.zr === 0) c.r8[op.dst] = c.r8[op.src]!;
    else c.r8[4 * RAX] = value;
  },
  w: (c, op) => {
    const value = c.r16[op.dst]!;
    compute16(c, ALU.sub, c.r16[2 * RAX]!, value);
    if (c.zr === 0) c.r16[op.dst] = c.r16[op.src]!;
    else c.r16[2 * RAX] = value;
  },
  d: (c, op) => {
    const { r } = c;
    const value = r[op.dst]!;
    compute32(c, ALU.sub, r[RAX]!, value);
    // What is not written is not zero-extended either.
    if (c.zr === 0) {
      r[op.dst] = r[op.src]!;
      r[op.dst + 1] = 0;
    } else setEax(c, value);
  },
  q: (c, op) => {
    const { r } = c;
    const lo = r[op.dst]!;
    const hi = r[op.dst + 1]!;
    compute64(c, ALU.sub, r[RAX]!, r[RAX + 1]!, lo, hi);
    const [to, from] = c.zr === 0 ? [op.dst, op.src] : [RAX, op.dst];
    r[to + 1] = r[from + 1]!;
    r[to] = r[from]!;
  },
};

/** The destination is written in both cases, as the processor does. */
const cmpxchgMemory: SizedRun = {
  b: (c, op) => {
    address(c, op);
    const value = modify8(c);
    compute8(c, ALU.sub, c.r8[4 * RAX]!, value);
    store8(c, c.zr === 0 ? c.r8[op.src]! : value);
    if (c.zr !== 0) c.r8[4 * RAX] = value;
  },
  w: (c, op) => {
    address(c, op);
    const value = modify16(c);
    compute16(c, ALU.sub, c.r16[2 * RAX]!, value);
    store16(c, c.zr === 0 ? c.r16[op.src]! : value);
    if (c.zr !== 0) c.r16[2 * RAX] = value;
  },
  d: (c, op) => {
    address(c, op);
    const value = modify32(c);
    compute32(c, ALU.sub, c.r[RAX]!, value);
    store32(c, c.zr === 0 ? c.r[op.src]! : value);
    if (c.zr !== 0) setEax(c, value);
  },
  q: (c, op) => {
    const { r } = c;
    address(c, op);
    const lo = modify64(c);
    const { hi } = c;
    compute64(c, ALU.sub, r[RAX]!, r[RAX + 1]!, lo, hi);
    if (c.zr === 0) store64(c, r[op.src]!, r[op.src + 1]!);
    else {
      store64(c, lo, hi);
      r[RAX] = lo;
      r[RAX + 1] = hi;
    }
  },
};

export const CMPXCHG: ExtendForms = { register: cmpxchgRegister, memory: cmpxchgMemory };

/** CMPXCHG8B: edx:eax with memory, ecx:ebx into it. Only ZF changes. */
export const cmpxchg8b: Run = (c, op) => {
  const { r } = c;
  address(c, op);
  const lo = modify64(c);
  const { hi } = c;
  if (r[RAX] === lo && r[RDX] === hi) {
    store64(c, r[RBX]!, r[RCX]!);
    c.zr = 0;
    return;
  }
  store64(c, lo, hi);
  setEax(c, lo);
  r[RDX] = hi;
  r[RDX + 1] = 0;
  c.zr = 1;
};

/** CMPXCHG16B: as above with 64-bit registers; the operand must be aligned. */
export const cmpxchg16b: Run = (c, op) => {
  const { r } = c;
  address(c, op);
  const { eaLo, eaHi } = c;
  if ((eaLo & 15) !== 0) raise(c, VECTOR.GP, 0);
  modify64(c);
  const lowLo = read64(c, eaLo, eaHi);
  const lowHi = c.hi;
  const highLo = read64(c, (eaLo + 8) | 0, eaHi);
  const highHi = c.hi;
  const equal = r[RAX] === lowLo && r[RAX + 1] === lowHi && r[RDX] === highLo && r[RDX + 1] === highHi;
  write64(c, eaLo, eaHi, equal ? r[RBX]! : lowLo, equal ? r[RBX + 1]! : lowHi);
  write64(c, (eaLo + 8) | 0, eaHi, equal ? r[RCX]! : highLo, equal ? r[RCX + 1]! : highHi);
  c.zr = equal ? 0 : 1;
  if (equal) return;
  r[RAX] = lowLo;
  r[RAX + 1] = lowHi;
  r[RDX] = highLo;
  r[RDX + 1] = highHi;
};

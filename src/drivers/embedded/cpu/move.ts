import type { Cpu } from './cpu.ts';
import { condition } from './flags.ts';
import {
  modify8,
  modify16,
  modify32,
  modify64,
  store8,
  store16,
  store32,
  store64,
  write8,
  write16,
  write32,
  write64,
} from './mmu.ts';
import type { Op, Run, SizedRun } from './op.ts';
import { address, load8, load16, load32, load64 } from './operand.ts';
import { undefinedOpcode } from './raise.ts';
import { RAX, RDX } from './slots.ts';

const undefinedSize: Run = (c) => undefinedOpcode(c);

function set32(c: Cpu, at: number, value: number): void {
  c.r[at] = value;
  c.r[at + 1] = 0;
}

function set64(c: Cpu, at: number, lo: number, hi: number): void {
  c.r[at] = lo;
  c.r[at + 1] = hi;
}

/** MOV, by destination and source. */
export const MOV = {
  registerRegister: {
    b: (c, op) => {
      c.r8[op.dst] = c.r8[op.src]!;
    },
    w: (c, op) => {
      c.r16[op.dst] = c.r16[op.src]!;
    },
    d: (c, op) => {
      const { r } = c;
      r[op.dst] = r[op.src]!;
      r[op.dst + 1] = 0;
    },
    q: (c, op) => {
      const { r } = c;
      r[op.dst] = r[op.src]!;
      r[op.dst + 1] = r[op.src + 1]!;
    },
  },
  registerMemory: {
    b: (c, op) => {
      c.r8[op.dst] = load8(c, op);
    },
    w: (c, op) => {
      c.r16[op.dst] = load16(c, op);
    },
    d: (c, op) => set32(c, op.dst, load32(c, op)),
    q: (c, op) => {
      const lo = load64(c, op);
      set64(c, op.dst, lo, c.hi);
    },
  },
  memoryRegister: {
    b: (c, op) => {
      address(c, op);
      write8(c, c.eaLo, c.eaHi, c.r8[op.src]!);
    },
    w: (c, op) => {
      address(c, op);
      write16(c, c.eaLo, c.eaHi, c.r16[op.src]!);
    },
    d: (c, op) => {
      address(c, op);
      write32(c, c.eaLo, c.eaHi, c.r[op.src]!);
    },
    q: (c, op) => {
      address(c, op);
      write64(c, c.eaLo, c.eaHi, c.r[op.src]!, c.r[op.src + 1]!);
    },
  },
  registerImmediate: {
    b: (c, op) => {
      c.r8[op.dst] = op.imm;
    },
    w: (c, op) => {
      c.r16[op.dst] = op.imm;
    },
    d: (c, op) => set32(c, op.dst, op.imm),
    q: (c, op) => set64(c, op.dst, op.imm, op.immHi),
  },
  memoryImmediate: {
    b: (c, op) => {
      address(c, op);
      write8(c, c.eaLo, c.eaHi, op.imm);
    },
    w: (c, op) => {
      address(c, op);
      write16(c, c.eaLo, c.eaHi, op.imm);
    },
    d: (c, op) => {
      address(c, op);
      write32(c, c.eaLo, c.eaHi, op.imm);
    },
    q: (c, op) => {
      address(c, op);
      write64(c, c.eaLo, c.eaHi, op.imm, op.immHi);
    },
  },
} satisfies Record<string, SizedRun>;

/** Instructions that fill a register, of any size, from a smaller operand. */
export interface ExtendForms {
  readonly register: SizedRun;
  readonly memory: SizedRun;
}

/** MOVZX, MOVSX and MOVSXD: `extend` makes an int32 of the operand; `signed` says what the rest of 64 bits is. */
function extending(
  fromRegister: (c: Cpu, op: Op) => number,
  fromMemory: (c: Cpu, op: Op) => number,
  extend: (value: number) => number,
  signed: boolean,
): ExtendForms {
  const sized = (source: (c: Cpu, op: Op) => number): SizedRun => ({
    b: undefinedSize,
    w: (c, op) => {
      c.r16[op.dst] = extend(source(c, op));
    },
    d: (c, op) => set32(c, op.dst, extend(source(c, op))),
    q: (c, op) => {
      const value = extend(source(c, op));
      set64(c, op.dst, value, signed ? value >> 31 : 0);
    },
  });
  return { register: sized(fromRegister), memory: sized(fromMemory) };
}

const byteOf = (c: Cpu, op: Op) => c.r8[op.src]!;
const wordOf = (c: Cpu, op: Op) => c.r16[op.src]!;
const dwordOf = (c: Cpu, op: Op) => c.r[op.src]!;

export const MOVZX8 = extending(byteOf, load8, (value) => value & 0xff, false);
export const MOVZX16 = extending(wordOf, load16, (value) => value & 0xffff, false);
export const MOVSX8 = extending(byteOf, load8, (value) => (value << 24) >> 24, true);
export const MOVSX16 = extending(wordOf, load16, (value) => (value << 16) >> 16, true);
export const MOVSXD = extending(dwordOf, load32, (value) => value, true);

export const LEA: SizedRun = {
  b: undefinedSize,
  w: (c, op) => {
    address(c, op);
    c.r16[op.dst] = c.eaLo;
  },
  d: (c, op) => {
    address(c, op);
    set32(c, op.dst, c.eaLo);
  },
  q: (c, op) => {
    address(c, op);
    set64(c, op.dst, c.eaLo, c.eaHi);
  },
};

/** XCHG: op.src with op.dst, or with memory. */
export const XCHG: ExtendForms = {
  register: {
    b: (c, op) => {
      const value = c.r8[op.dst]!;
      c.r8[op.dst] = c.r8[op.src]!;
      c.r8[op.src] = value;
    },
    w: (c, op) => {
      const value = c.r16[op.dst]!;
      c.r16[op.dst] = c.r16[op.src]!;
      c.r16[op.src] = value;
    },
    d: (c, op) => {
      const value = c.r[op.dst]!;
      set32(c, op.dst, c.r[op.src]!);
      set32(c, op.src, value);
    },
    q: (c, op) => {
      const lo = c.r[op.dst]!;
      const hi = c.r[op.dst + 1]!;
      set64(c, op.dst, c.r[op.src]!, c.r[op.src + 1]!);
      set64(c, op.src, lo, hi);
    },
  },
  memory: {
    b: (c, op) => {
      address(c, op);
      const value = modify8(c);
      store8(c, c.r8[op.src]!);
      c.r8[op.src] = value;
    },
    w: (c, op) => {
      address(c, op);
      const value = modify16(c);
      store16(c, c.r16[op.src]!);
      c.r16[op.src] = value;
    },
    d: (c, op) => {
      address(c, op);
      const value = modify32(c);
      store32(c, c.r[op.src]!);
      set32(c, op.src, value);
    },
    q: (c, op) => {
      address(c, op);
      const lo = modify64(c);
      const { hi } = c;
      store64(c, c.r[op.src]!, c.r[op.src + 1]!);
      set64(c, op.src, lo, hi);
    },
  },
};

/** CMOVcc, by op.kind: the operand is read, and a 32-bit destination zero-extended, whatever the condition. */
export const CMOV: ExtendForms = {
  register: {
    b: undefinedSize,
    w: (c, op) => {
      if (condition(c, op.kind)) c.r16[op.dst] = c.r16[op.src]!;
    },
    d: (c, op) => set32(c, op.dst, condition(c, op.kind) ? c.r[op.src]! : c.r[op.dst]!),
    q: (c, op) => {
      if (condition(c, op.kind)) set64(c, op.dst, c.r[op.src]!, c.r[op.src + 1]!);
    },
  },
  memory: {
    b: undefinedSize,
    w: (c, op) => {
      const value = load16(c, op);
      if (condition(c, op.kind)) c.r16[op.dst] = value;
    },
    d: (c, op) => {
      const value = load32(c, op);
      set32(c, op.dst, condition(c, op.kind) ? value : c.r[op.dst]!);
    },
    q: (c, op) => {
      const lo = load64(c, op);
      if (condition(c, op.kind)) set64(c, op.dst, lo, c.hi);
    },
  },
};

/** SETcc, by op.kind. */
export const SETCC: { readonly register: Run; readonly memory: Run } = {
  register: (c, op) => {
    c.r8[op.dst] = condition(c, op.kind) ? 1 : 0;
  },
  memory: (c, op) => {
    address(c, op);
    write8(c, c.eaLo, c.eaHi, condition(c, op.kind) ? 1 : 0);
  },
};

function swap32(x: number): number {
  return (x << 24) | ((x & 0xff00) << 8) | ((x >>> 8) & 0xff00) | (x >>> 24);
}

export const BSWAP: SizedRun = {
  b: undefinedSize,
  /** Undefined by the architecture; processors clear the register. */
  w: (c, op) => {
    c.r16[op.dst] = 0;
  },
  d: (c, op) => set32(c, op.dst, swap32(c.r[op.dst]!)),
  q: (c, op) => set64(c, op.dst, swap32(c.r[op.dst + 1]!), swap32(c.r[op.dst]!)),
};

/** CBW, CWDE, CDQE: sign-extends the lower half of rax into it. */
export const EXTEND_RAX: SizedRun = {
  b: undefinedSize,
  w: (c) => {
    c.r16[2 * RAX] = (c.r8[4 * RAX]! << 24) >> 24;
  },
  d: (c) => set32(c, RAX, (c.r16[2 * RAX]! << 16) >> 16),
  q: (c) => {
    c.r[RAX + 1] = c.r[RAX]! >> 31;
  },
};

/** CWD, CDQ, CQO: fills rdx with the sign of rax. */
export const SIGN_RDX: SizedRun = {
  b: undefinedSize,
  w: (c) => {
    c.r16[2 * RDX] = (c.r16[2 * RAX]! << 16) >> 31;
  },
  d: (c) => set32(c, RDX, c.r[RAX]! >> 31),
  q: (c) => {
    const sign = c.r[RAX + 1]! >> 31;
    set64(c, RDX, sign, sign);
  },
};

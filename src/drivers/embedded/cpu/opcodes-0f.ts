import { BIT_CHANGES, BSF, BSR, bitForms, doubleShiftForms, LZCNT, POPCNT, TZCNT } from './bits.ts';
import { jumpIf } from './branch.ts';
import {
  clts,
  loadMachineStatus,
  movFromCr,
  movFromDr,
  movToCr,
  movToDr,
  rdmsr,
  wrmsr,
  xgetbv,
  xsetbv,
} from './control.ts';
import type { Decode, Decoder } from './decoder.ts';
import { CMPXCHG, cmpxchg8b, cmpxchg16b, XADD } from './exchange.ts';
import { CONDITIONS } from './flags.ts';
import { branching, ending, extend, plain, rmSource, thenEnding } from './forms.ts';
import { BSWAP, CMOV, MOV, MOVSX8, MOVSX16, MOVZX8, MOVZX16, SETCC } from './move.ts';
import { imulForms } from './multiply.ts';
import type { Run } from './op.ts';
import { undefinedOpcode } from './raise.ts';
import { shld16, shld32, shld64, shrd16, shrd32, shrd64 } from './shift.ts';
import { RCX } from './slots.ts';
import {
  fxrstor,
  fxsave,
  ldmxcsr,
  loadLow,
  loadXmm,
  movFromXmm,
  movLow,
  movToXmm,
  movXmm,
  stmxcsr,
  storeLow,
  storeXmm,
  xorXmm,
  xorXmmMemory,
  xrstor,
  xsave,
} from './sse.ts';
import {
  cpuid,
  hypercall,
  invlpg,
  LLDT,
  LTR,
  lgdt,
  lidt,
  nothing,
  privilegedNothing,
  rdtsc,
  rdtscp,
  SLDT,
  SMSW,
  STR,
  segmentBase,
  sgdt,
  sidt,
  swapgs,
  takeWord,
  vmfunc,
} from './system.ts';
import { syscall, sysret } from './transfer.ts';

/** How to decode the opcodes after 0x0f; what is not here does not exist. */
export const TWO_BYTE: (Decode | undefined)[] = new Array(256).fill(undefined);

interface Forms {
  readonly register: Run;
  readonly memory: Run;
}

/** An instruction of a group whose operand is a 16-bit register or memory. */
function wordOperand(d: Decoder, forms: Forms): Run {
  d.op.dst = d.register(d.rm, 'q');
  d.op.imm = d.operand16 ? 2 : 4;
  return d.memory ? forms.memory : forms.register;
}

TWO_BYTE[0x00] = thenEnding((d) => {
  d.modrm();
  const forms = [SLDT, STR, LLDT, LTR][d.reg & 7];
  return forms ? wordOperand(d, forms) : d.undefined();
});

const LMSW = takeWord(loadMachineStatus);

/** 0x0f 0x01 with a memory operand, by /reg. */
const GROUP7_MEMORY: readonly (Run | undefined)[] = [
  sgdt,
  sidt,
  lgdt,
  lidt,
  SMSW.memory,
  undefined,
  LMSW.memory,
  invlpg,
];

/** 0x0f 0x01 without memory, by the reg and rm fields of the ModRM byte. */
const GROUP7_REGISTER = new Map<number, Run>(
  (
    [
      [0, 1, hypercall],
      [2, 0, xgetbv],
      [2, 1, xsetbv],
      [2, 4, vmfunc],
      [3, 1, hypercall],
      [7, 0, swapgs],
      [7, 1, rdtscp],
    ] as const
  ).map(([reg, rm, run]) => [8 * reg + rm, run]),
);

TWO_BYTE[0x01] = thenEnding((d) => {
  d.modrm();
  const which = d.reg & 7;
  if (d.memory) return GROUP7_MEMORY[which] ?? d.undefined();
  const run = GROUP7_REGISTER.get(8 * which + (d.rm & 7));
  if (run) return run === swapgs && !d.mode64 ? d.undefined() : run;
  if (which === 4) return wordOperand(d, SMSW);
  return which === 6 ? wordOperand(d, LMSW) : d.undefined();
});

TWO_BYTE[0x05] = branching(syscall);
TWO_BYTE[0x06] = ending(clts);
TWO_BYTE[0x07] = (d) => {
  d.op.src = d.size === 'q' ? 8 : 4;
  d.op.ends = true;
  return sysret;
};
TWO_BYTE[0x08] = plain(privilegedNothing);
TWO_BYTE[0x09] = plain(privilegedNothing);
TWO_BYTE[0x0b] = plain((c) => undefinedOpcode(c));

/** Hints and long NOPs. */
for (const opcode of [0x0d, 0x18, 0x19, 0x1a, 0x1b, 0x1c, 0x1d, 0x1e, 0x1f]) {
  TWO_BYTE[opcode] = (d) => {
    d.modrm();
    return nothing;
  };
}

/** MOV with control and debug registers: ModRM always names registers. */
const systemRegister = (run: Run): Decode =>
  thenEnding((d) => {
    const byte = d.byte();
    const number = ((byte >>> 3) & 7) | ((d.rex & 4) << 1);
    const general = d.register((byte & 7) | ((d.rex & 1) << 3), 'q');
    if (number > 8) d.undefined();
    d.op.imm = number;
    d.op.src = general;
    d.op.dst = general;
    return run;
  });
TWO_BYTE[0x20] = systemRegister(movFromCr);
TWO_BYTE[0x22] = systemRegister(movToCr);
TWO_BYTE[0x21] = systemRegister(movFromDr);
TWO_BYTE[0x23] = systemRegister(movToDr);

TWO_BYTE[0x30] = ending(wrmsr);
TWO_BYTE[0x31] = plain(rdtsc);
TWO_BYTE[0x32] = ending(rdmsr);
TWO_BYTE[0xa2] = ending(cpuid);

const cmov = extend(CMOV, 'same');
for (let number = 0; number < CONDITIONS; number++) {
  TWO_BYTE[0x40 + number] = (d) => {
    d.op.kind = number;
    return cmov(d);
  };
  TWO_BYTE[0x80 + number] = (d) => {
    if (!d.mode64 && d.operand16) d.undefined();
    d.op.kind = number;
    d.relative('d');
    return jumpIf;
  };
  TWO_BYTE[0x90 + number] = (d) => {
    d.op.kind = number;
    d.modrm();
    if (d.memory) return SETCC.memory;
    d.op.dst = d.register(d.rm, 'b');
    return SETCC.register;
  };
}

/** Moves of 16 bytes by prefix: which alignment they ask for, and whether they exist. */
function vectorMove(alignment: (d: Decoder) => number, store: boolean): Decode {
  const loads = { 1: loadXmm(1), 16: loadXmm(16) };
  const stores = { 1: storeXmm(1), 16: storeXmm(16) };
  return (d) => {
    const by = alignment(d) as 1 | 16;
    d.modrm();
    d.op.dst = store ? d.rm : d.reg;
    d.op.src = store ? d.reg : d.rm;
    if (!d.memory) return movXmm;
    return (store ? stores : loads)[by];
  };
}
const unaligned = (d: Decoder) => (d.rep !== 0 ? d.undefined() : 1);
const aligned = (d: Decoder) => (d.rep !== 0 ? d.undefined() : 16);
const integer = (d: Decoder) => (d.rep === 0xf3 ? 1 : d.operand16 && d.rep === 0 ? 16 : d.undefined());
TWO_BYTE[0x10] = vectorMove(unaligned, false);
TWO_BYTE[0x11] = vectorMove(unaligned, true);
TWO_BYTE[0x28] = vectorMove(aligned, false);
TWO_BYTE[0x29] = vectorMove(aligned, true);
TWO_BYTE[0x6f] = vectorMove(integer, false);
TWO_BYTE[0x7f] = vectorMove(integer, true);

function vectorXor(exists: (d: Decoder) => boolean): Decode {
  return (d) => {
    if (!exists(d)) d.undefined();
    d.modrm();
    d.op.dst = d.reg;
    d.op.src = d.rm;
    return d.memory ? xorXmmMemory : xorXmm;
  };
}
TWO_BYTE[0x57] = vectorXor((d) => d.rep === 0);
TWO_BYTE[0xef] = vectorXor((d) => d.operand16 && d.rep === 0);

/** MOVD and MOVQ between a vector register and a general one or memory. */
TWO_BYTE[0x6e] = (d) => {
  if (!d.operand16 || d.rep !== 0) d.undefined();
  d.modrm();
  d.op.imm = (d.rex & 8) !== 0 ? 8 : 4;
  d.op.dst = d.reg;
  d.op.src = d.register(d.rm, 'q');
  return d.memory ? loadLow : movToXmm;
};
TWO_BYTE[0x7e] = (d) => {
  d.modrm();
  if (d.rep === 0xf3) {
    d.op.imm = 8;
    d.op.dst = d.reg;
    d.op.src = d.rm;
    return d.memory ? loadLow : movLow;
  }
  if (!d.operand16 || d.rep !== 0) d.undefined();
  d.op.imm = (d.rex & 8) !== 0 ? 8 : 4;
  d.op.src = d.reg;
  d.op.dst = d.register(d.rm, 'q');
  return d.memory ? storeLow : movFromXmm;
};
TWO_BYTE[0xd6] = (d) => {
  if (!d.operand16 || d.rep !== 0) d.undefined();
  d.modrm();
  d.op.imm = 8;
  d.op.src = d.reg;
  d.op.dst = d.rm;
  return d.memory ? storeLow : movLow;
};

/** Saving and restoring state, fences, and with F3 the bases of fs and gs. */
const STATE: readonly (Run | undefined)[] = [fxsave, fxrstor, ldmxcsr, stmxcsr, xsave, xrstor];
TWO_BYTE[0xae] = (d) => {
  d.modrm();
  const which = d.reg & 7;
  if (d.memory) {
    if (which === 7) return nothing;
    return (d.rep === 0 ? STATE[which] : undefined) ?? d.undefined();
  }
  if (d.rep === 0 && which >= 5) return nothing;
  if (d.rep !== 0xf3 || which > 3 || !d.mode64) d.undefined();
  d.op.imm = which;
  d.op.src = d.size === 'q' ? 8 : 4;
  d.op.dst = d.register(d.rm, 'q');
  return segmentBase;
};

/** BT, BTS, BTR, BTC with the bit number in a register, then with an immediate. */
const IMMEDIATE_BITS = BIT_CHANGES.map((change) => bitForms(change, true));
BIT_CHANGES.forEach((change, i) => {
  TWO_BYTE[0xa3 + 8 * i] = rmSource(bitForms(change, false), 'full', change !== undefined);
});
TWO_BYTE[0xba] = (d) => {
  d.modrm();
  const which = (d.reg & 7) - 4;
  if (which < 0) d.undefined();
  d.op.imm = d.byte();
  d.lockable = d.memory && which > 0;
  d.op.dst = d.register(d.rm, d.size);
  const forms = IMMEDIATE_BITS[which]!;
  return (d.memory ? forms.memory : forms.register)[d.size];
};

const doubleShift = (left: boolean, immediate: boolean): Decode => {
  const shift = left ? { w: shld16, d: shld32, q: shld64 } : { w: shrd16, d: shrd32, q: shrd64 };
  const forms = doubleShiftForms(shift, immediate ? (_c, op) => op.imm : (c) => c.r[RCX]!);
  const decode = rmSource(forms, 'full', false);
  return (d) => {
    const run = decode(d);
    if (immediate) d.op.imm = d.byte();
    return run;
  };
};
TWO_BYTE[0xa4] = doubleShift(true, true);
TWO_BYTE[0xa5] = doubleShift(true, false);
TWO_BYTE[0xac] = doubleShift(false, true);
TWO_BYTE[0xad] = doubleShift(false, false);

TWO_BYTE[0xaf] = extend(imulForms(false), 'same');
TWO_BYTE[0xb0] = rmSource(CMPXCHG, 'byte', true);
TWO_BYTE[0xb1] = rmSource(CMPXCHG, 'full', true);
TWO_BYTE[0xc0] = rmSource(XADD, 'byte', true);
TWO_BYTE[0xc1] = rmSource(XADD, 'full', true);
TWO_BYTE[0xb6] = extend(MOVZX8, 'b');
TWO_BYTE[0xb7] = extend(MOVZX16, 'w');
TWO_BYTE[0xbe] = extend(MOVSX8, 'b');
TWO_BYTE[0xbf] = extend(MOVSX16, 'w');

const scanFirst = extend(BSF, 'same');
const scanLast = extend(BSR, 'same');
const trailing = extend(TZCNT, 'same');
const leading = extend(LZCNT, 'same');
const population = extend(POPCNT, 'same');
TWO_BYTE[0xb8] = (d) => (d.rep === 0xf3 ? population(d) : d.undefined());
TWO_BYTE[0xbc] = (d) => (d.rep === 0xf3 ? trailing(d) : scanFirst(d));
TWO_BYTE[0xbd] = (d) => (d.rep === 0xf3 ? leading(d) : scanLast(d));

/** MOVNTI: a plain store here. */
TWO_BYTE[0xc3] = (d) => {
  d.modrm();
  if (!d.memory || d.size === 'w') d.undefined();
  d.op.src = d.register(d.reg, d.size);
  return MOV.memoryRegister[d.size];
};
TWO_BYTE[0xc7] = (d) => {
  d.modrm();
  if ((d.reg & 7) !== 1 || !d.memory) d.undefined();
  d.lockable = true;
  return d.size === 'q' ? cmpxchg16b : cmpxchg8b;
};
for (let i = 0; i < 8; i++) {
  TWO_BYTE[0xc8 + i] = (d) => {
    d.op.dst = d.opcodeRegister(d.size);
    return BSWAP[d.size];
  };
}

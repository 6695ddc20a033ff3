import { ALU, UNARY } from './alu.ts';
import { BINARY, COMPARE, SHIFT_FORMS, UNARY_FORMS } from './arithmetic.ts';
import {
  call,
  callMemory,
  callRegister,
  jump,
  jumpIf,
  jumpMemory,
  jumpRegister,
  LOOPS,
  ret,
} from './branch.ts';
import type { Decode, Decoder } from './decoder.ts';
import {
  accumulatorImmediate,
  branching,
  ending,
  extend,
  onlyIn,
  plain,
  regRm,
  rmImmediate,
  rmOnly,
  rmReg,
  rmSource,
  stackRegister,
  stackRun,
  thenEnding,
} from './forms.ts';
import { EXTEND_RAX, LEA, MOV, MOVSXD, SIGN_RDX, XCHG } from './move.ts';
import { DIV, IDIV, IMUL, imulForms, MUL } from './multiply.ts';
import type { Run, SizedRun } from './op.ts';
import { CS, ZERO } from './slots.ts';
import {
  enter,
  leave,
  POP_MEMORY,
  POP_REGISTER,
  POPF,
  PUSH_IMMEDIATE,
  PUSH_MEMORY,
  PUSH_REGISTER,
  PUSHF,
  type StackForms,
} from './stack.ts';
import { CMPS, LODS, MOVS, SCAS, STOS } from './strings.ts';
import {
  cld,
  cli,
  fninit,
  halt,
  int,
  int3,
  lahf,
  MOV_FROM_SEGMENT,
  MOV_TO_SEGMENT,
  nothing,
  portIn,
  portOut,
  sahf,
  std,
  sti,
} from './system.ts';
import { callFarMemory, iret, jumpFarImmediate, jumpFarMemory, retFar } from './transfer.ts';

export { TWO_BYTE } from './opcodes-0f.ts';

/** How to decode each one-byte opcode; what is not here does not exist. */
export const ONE_BYTE: (Decode | undefined)[] = new Array(256).fill(undefined);

/** Sets which operation a handler that serves several does. */
function kind(number: number, decode: Decode): Decode {
  return (d) => {
    d.op.kind = number;
    return decode(d);
  };
}

/** The arithmetic instructions in the order of their encoding: those of ALU, and CMP. */
const CMP = 7;
for (let number = 0; number <= CMP; number++) {
  const base = 8 * number;
  const forms = number === CMP ? COMPARE : BINARY;
  const operation = number === CMP ? ALU.sub : number;
  const writes = number !== CMP;
  ONE_BYTE[base] = kind(operation, rmReg(forms, 'byte', writes));
  ONE_BYTE[base + 1] = kind(operation, rmReg(forms, 'full', writes));
  ONE_BYTE[base + 2] = kind(operation, regRm(forms, 'byte'));
  ONE_BYTE[base + 3] = kind(operation, regRm(forms, 'full'));
  ONE_BYTE[base + 4] = kind(operation, accumulatorImmediate(forms, 'byte'));
  ONE_BYTE[base + 5] = kind(operation, accumulatorImmediate(forms, 'full'));
}

/** 0x80, 0x81 and 0x83: arithmetic with an immediate; /reg says which. */
function arithmeticImmediate(width: 'byte' | 'full', short: boolean): Decode {
  return (d) => {
    d.modrm();
    const number = d.reg & 7;
    d.op.kind = number === CMP ? ALU.sub : number;
    return rmImmediate(d, number === CMP ? COMPARE : BINARY, width, short, number !== CMP);
  };
}
ONE_BYTE[0x80] = arithmeticImmediate('byte', true);
ONE_BYTE[0x81] = arithmeticImmediate('full', false);
ONE_BYTE[0x83] = arithmeticImmediate('full', true);

/** TEST is an AND whose result is dropped. */
ONE_BYTE[0x84] = kind(ALU.and, rmReg(COMPARE, 'byte', false));
ONE_BYTE[0x85] = kind(ALU.and, rmReg(COMPARE, 'full', false));
ONE_BYTE[0xa8] = kind(ALU.and, accumulatorImmediate(COMPARE, 'byte'));
ONE_BYTE[0xa9] = kind(ALU.and, accumulatorImmediate(COMPARE, 'full'));
ONE_BYTE[0x86] = rmSource(XCHG, 'byte', true);
ONE_BYTE[0x87] = rmSource(XCHG, 'full', true);

ONE_BYTE[0x63] = onlyIn(64, extend(MOVSXD, 'd'));
ONE_BYTE[0x88] = rmReg(MOV, 'byte', false);
ONE_BYTE[0x89] = rmReg(MOV, 'full', false);
ONE_BYTE[0x8a] = regRm(MOV, 'byte');
ONE_BYTE[0x8b] = regRm(MOV, 'full');
ONE_BYTE[0x8d] = (d) => {
  d.modrm();
  if (!d.memory) d.undefined();
  d.op.segment = ZERO;
  d.op.dst = d.register(d.reg, d.size);
  return LEA[d.size];
};

/** 0x40–0x4f are REX prefixes in 64-bit code. */
for (let i = 0; i < 8; i++) {
  for (const [base, operation] of [
    [0x40, UNARY.inc],
    [0x48, UNARY.dec],
  ] as const) {
    ONE_BYTE[base + i] = onlyIn(32, (d) => {
      d.op.kind = operation;
      d.op.dst = d.opcodeRegister(d.size);
      return UNARY_FORMS.register[d.size];
    });
  }
  ONE_BYTE[0x50 + i] = (d) => {
    d.op.src = stackRegister(d);
    return stackRun(d, PUSH_REGISTER);
  };
  ONE_BYTE[0x58 + i] = (d) => {
    d.op.dst = stackRegister(d);
    return stackRun(d, POP_REGISTER);
  };
  ONE_BYTE[0x90 + i] = (d) => {
    d.op.dst = d.opcodeRegister(d.size);
    return d.op.dst === 0 ? nothing : XCHG.register[d.size];
  };
  ONE_BYTE[0xb0 + i] = (d) => {
    d.op.dst = d.opcodeRegister('b');
    d.immediate('b');
    return MOV.registerImmediate.b;
  };
  ONE_BYTE[0xb8 + i] = (d) => {
    d.op.dst = d.opcodeRegister(d.size);
    d.immediate(d.size);
    if (d.size === 'q') d.op.immHi = d.signed32();
    return MOV.registerImmediate[d.size];
  };
}

const pushImmediate = (short: boolean): Decode => {
  return (d) => {
    if (short) d.immediate8();
    else d.immediate(d.operand16 ? 'w' : 'd');
    return stackRun(d, PUSH_IMMEDIATE);
  };
};
ONE_BYTE[0x68] = pushImmediate(false);
ONE_BYTE[0x6a] = pushImmediate(true);
ONE_BYTE[0x8f] = (d) => {
  d.modrm();
  if ((d.reg & 7) !== 0) d.undefined();
  if (d.memory) return stackRun(d, POP_MEMORY);
  d.op.dst = d.register(d.rm, d.operand16 ? 'w' : 'q');
  return stackRun(d, POP_REGISTER);
};

const IMUL3 = imulForms(true);
const imulImmediate = (short: boolean): Decode => {
  return (d) => {
    d.modrm();
    d.op.dst = d.register(d.reg, d.size);
    if (!d.memory) d.op.src = d.register(d.rm, d.size);
    if (short) d.immediate8();
    else d.immediate(d.size);
    return (d.memory ? IMUL3.memory : IMUL3.register)[d.size];
  };
};
ONE_BYTE[0x69] = imulImmediate(false);
ONE_BYTE[0x6b] = imulImmediate(true);

for (let i = 0; i < 16; i++) {
  ONE_BYTE[0x70 + i] = (d) => {
    d.op.kind = i;
    d.relative('b');
    return jumpIf;
  };
}

ONE_BYTE[0x8c] = (d) => {
  d.modrm();
  const forms = MOV_FROM_SEGMENT[d.reg & 7] ?? d.undefined();
  d.op.dst = d.register(d.rm, 'q');
  d.op.imm = d.operand16 ? 2 : 4;
  return d.memory ? forms.memory : forms.register;
};
ONE_BYTE[0x8e] = thenEnding((d) => {
  d.modrm();
  if ((d.reg & 7) === CS || (d.reg & 7) > 5) d.undefined();
  d.op.imm = d.reg & 7;
  d.op.dst = d.register(d.rm, 'q');
  return d.memory ? MOV_TO_SEGMENT.memory : MOV_TO_SEGMENT.register;
});

const sized = (forms: SizedRun): Decode => {
  return (d) => forms[d.size];
};
ONE_BYTE[0x98] = sized(EXTEND_RAX);
ONE_BYTE[0x99] = sized(SIGN_RDX);
const stacked = (forms: StackForms): Decode => {
  return (d) => stackRun(d, forms);
};
ONE_BYTE[0x9c] = stacked(PUSHF);
ONE_BYTE[0x9d] = thenEnding(stacked(POPF));
ONE_BYTE[0x9e] = plain(sahf);
ONE_BYTE[0x9f] = plain(lahf);

const accumulatorMemory = (load: boolean, byte: boolean): Decode => {
  return (d) => {
    d.absolute();
    const forms = load ? MOV.registerMemory : MOV.memoryRegister;
    return forms[byte ? 'b' : d.size];
  };
};
ONE_BYTE[0xa0] = accumulatorMemory(true, true);
ONE_BYTE[0xa1] = accumulatorMemory(true, false);
ONE_BYTE[0xa2] = accumulatorMemory(false, true);
ONE_BYTE[0xa3] = accumulatorMemory(false, false);

const BYTES = { w: 2, d: 4, q: 8 } as const;
for (const [base, run] of [
  [0xa4, MOVS],
  [0xa6, CMPS],
  [0xaa, STOS],
  [0xac, LODS],
  [0xae, SCAS],
] as const) {
  for (const byte of [true, false]) {
    ONE_BYTE[base + (byte ? 0 : 1)] = (d) => {
      d.op.imm = byte ? 1 : BYTES[d.size];
      d.op.src = d.segmentBase(3);
      d.op.dst = d.destinationBase;
      d.op.ends = true;
      return run;
    };
  }
}

/** 0xc0, 0xc1 and 0xd0 to 0xd3: shifts by an immediate, by 1 and by cl; /reg says which shift. */
for (const [base, count] of [
  [0xc0, 'immediate'],
  [0xd0, 'one'],
  [0xd2, 'cl'],
] as const) {
  for (const width of ['byte', 'full'] as const) {
    ONE_BYTE[base + (width === 'byte' ? 0 : 1)] = (d) => {
      d.modrm();
      d.op.kind = d.reg & 7;
      d.op.imm = count === 'immediate' ? d.byte() : 1;
      d.op.src = count === 'cl' ? 1 : 0;
      return rmOnly(d, SHIFT_FORMS, width, false);
    };
  }
}

ONE_BYTE[0xc2] = (d) => {
  d.op.imm = d.unsigned16();
  d.op.ends = true;
  return ret;
};
ONE_BYTE[0xc3] = branching(ret);
for (const width of ['byte', 'full'] as const) {
  ONE_BYTE[width === 'byte' ? 0xc6 : 0xc7] = (d) => {
    d.modrm();
    if ((d.reg & 7) !== 0) d.undefined();
    return rmImmediate(d, MOV, width, false, false);
  };
}
ONE_BYTE[0xc8] = (d) => {
  d.op.imm = d.unsigned16();
  d.op.immHi = d.byte();
  return enter;
};
ONE_BYTE[0xc9] = plain(leave);

/** RETF and IRET: op.src is the size of a stack slot. */
const slotSized = (run: Run, withImmediate: boolean): Decode => {
  return (d) => {
    if (withImmediate) d.op.imm = d.unsigned16();
    if (d.size === 'w') d.undefined();
    d.op.src = d.size === 'q' ? 8 : 4;
    d.op.ends = true;
    return run;
  };
};
ONE_BYTE[0xca] = slotSized(retFar, true);
ONE_BYTE[0xcb] = slotSized(retFar, false);
ONE_BYTE[0xcf] = slotSized(iret, false);
ONE_BYTE[0xcc] = branching(int3);
ONE_BYTE[0xcd] = (d) => {
  d.op.imm = d.byte();
  d.op.ends = true;
  return int;
};

ONE_BYTE[0xdb] = (d) => {
  d.modrm();
  return d.mod === 3 && d.reg === 4 && d.rm === 3 ? fninit : d.undefined();
};

LOOPS.forEach((run, i) => {
  ONE_BYTE[0xe0 + i] = (d) => {
    d.relative('b');
    return run;
  };
});
for (const [base, run] of [
  [0xe4, portIn],
  [0xe6, portOut],
  [0xec, portIn],
  [0xee, portOut],
] as const) {
  for (const byte of [true, false]) {
    ONE_BYTE[base + (byte ? 0 : 1)] = thenEnding((d) => {
      d.op.imm = base < 0xe8 ? d.byte() : -1;
      d.op.src = byte ? 1 : d.operand16 ? 2 : 4;
      return run;
    });
  }
}
const near = (run: Run, size: 'b' | 'd'): Decode => {
  return (d) => {
    if (!d.mode64 && d.operand16) d.undefined();
    d.relative(size);
    return run;
  };
};
ONE_BYTE[0xe8] = near(call, 'd');
ONE_BYTE[0xe9] = near(jump, 'd');
ONE_BYTE[0xeb] = near(jump, 'b');
ONE_BYTE[0xea] = onlyIn(32, (d) => {
  d.op.imm = d.signed32();
  d.op.immHi = d.unsigned16();
  d.op.ends = true;
  return jumpFarImmediate;
});

ONE_BYTE[0xf4] = branching(halt);
ONE_BYTE[0xf5] = plain((c) => {
  c.cf ^= 1;
});
ONE_BYTE[0xf8] = plain((c) => {
  c.cf = 0;
});
ONE_BYTE[0xf9] = plain((c) => {
  c.cf = 1;
});
ONE_BYTE[0xfa] = ending(cli);
ONE_BYTE[0xfb] = ending(sti);
ONE_BYTE[0xfc] = plain(cld);
ONE_BYTE[0xfd] = plain(std);

for (const width of ['byte', 'full'] as const) {
  ONE_BYTE[width === 'byte' ? 0xf6 : 0xf7] = (d) => {
    d.modrm();
    switch (d.reg & 7) {
      case 0:
      case 1:
        d.op.kind = ALU.and;
        return rmImmediate(d, COMPARE, width, width === 'byte', false);
      case 2:
      case 3:
        d.op.kind = (d.reg & 7) === 2 ? UNARY.not : UNARY.neg;
        return rmOnly(d, UNARY_FORMS, width, true);
      default:
        return rmOnly(d, [MUL, IMUL, DIV, IDIV][(d.reg & 7) - 4]!, width, false);
    }
  };
}
/** INC and DEC of an operand, as /0 and /1. */
function increment(d: Decoder, width: 'byte' | 'full'): Run {
  if ((d.reg & 7) > 1) d.undefined();
  d.op.kind = (d.reg & 7) === 0 ? UNARY.inc : UNARY.dec;
  return rmOnly(d, UNARY_FORMS, width, true);
}

ONE_BYTE[0xfe] = (d) => {
  d.modrm();
  return increment(d, 'byte');
};

/** 0xff: INC, DEC, CALL, JMP and PUSH of an operand; the branches are 64-bit in 64-bit code. */
ONE_BYTE[0xff] = (d) => {
  d.modrm();
  const which = d.reg & 7;
  if (which <= 1) return increment(d, 'full');
  if (which === 6) {
    d.op.src = d.register(d.rm, d.operand16 ? 'w' : 'q');
    return stackRun(d, d.memory ? PUSH_MEMORY : PUSH_REGISTER);
  }
  if (which === 7) d.undefined();
  d.op.ends = true;
  if (which === 3 || which === 5) return farOperand(d, which === 3 ? callFarMemory : jumpFarMemory);
  d.op.dst = d.register(d.rm, 'q');
  if (which === 2) return d.memory ? callMemory : callRegister;
  return d.memory ? jumpMemory : jumpRegister;
};

function farOperand(d: Decoder, run: Run): Run {
  if (!d.memory || d.size === 'w') d.undefined();
  d.op.src = d.size === 'q' ? 8 : 4;
  return run;
}

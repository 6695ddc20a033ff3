import type { BinaryForms, UnaryForms } from './arithmetic.ts';
import { goOn } from './branch.ts';
import type { Decode, Decoder, Size } from './decoder.ts';
import type { ExtendForms } from './move.ts';
import type { Run, SizedRun } from './op.ts';
import type { StackForms } from './stack.ts';

/* Encodings that many instructions share: which operand is where. */

/** The operand size of an instruction that has a byte form and another one. */
type Width = 'byte' | 'full';

function sizeOf(d: Decoder, width: Width): Size {
  return width === 'byte' ? 'b' : d.size;
}

/** An instruction without operands to decode. */
export function plain(run: Run): Decode {
  return () => run;
}

/** An instruction without operands, after which the loop must look around (modes, traps and interrupts change). */
export function ending(run: Run): Decode {
  const andGoOn: Run = (c, op) => {
    run(c, op);
    goOn(c, op);
  };
  return (d) => {
    d.op.ends = true;
    return andGoOn;
  };
}

/** An instruction that sets rip. */
export function branching(run: Run): Decode {
  return (d) => {
    d.op.ends = true;
    return run;
  };
}

/** Makes a decoded instruction the last one of its block. */
export function thenEnding(decode: Decode): Decode {
  const cache = new Map<Run, Run>();
  return (d) => {
    const run = decode(d);
    d.op.ends = true;
    let wrapped = cache.get(run);
    if (!wrapped) {
      wrapped = (c, op) => {
        run(c, op);
        goOn(c, op);
      };
      cache.set(run, wrapped);
    }
    return wrapped;
  };
}

/** `op r/m, reg` */
export function rmReg(forms: BinaryForms, width: Width, lockable = true): Decode {
  return (d) => {
    const size = sizeOf(d, width);
    d.modrm();
    d.op.src = d.register(d.reg, size);
    if (d.memory) {
      d.lockable = lockable;
      return forms.memoryRegister[size];
    }
    d.op.dst = d.register(d.rm, size);
    return forms.registerRegister[size];
  };
}

/** `op reg, r/m` */
export function regRm(forms: Pick<BinaryForms, 'registerRegister' | 'registerMemory'>, width: Width): Decode {
  return (d) => {
    const size = sizeOf(d, width);
    d.modrm();
    d.op.dst = d.register(d.reg, size);
    if (d.memory) return forms.registerMemory[size];
    d.op.src = d.register(d.rm, size);
    return forms.registerRegister[size];
  };
}

/** `op al/eax/rax, imm` */
export function accumulatorImmediate(forms: BinaryForms, width: Width): Decode {
  return (d) => {
    const size = sizeOf(d, width);
    d.immediate(size);
    return forms.registerImmediate[size];
  };
}

/** `op r/m, imm`, after ModRM was read. The immediate is one byte when `short`. */
export function rmImmediate(
  d: Decoder,
  forms: BinaryForms,
  width: Width,
  short: boolean,
  lockable: boolean,
): Run {
  const size = sizeOf(d, width);
  if (short) d.immediate8();
  else d.immediate(size);
  if (d.memory) {
    d.lockable = lockable;
    return forms.memoryImmediate[size];
  }
  d.op.dst = d.register(d.rm, size);
  return forms.registerImmediate[size];
}

/** `op r/m`, after ModRM was read. */
export function rmOnly(
  d: Decoder,
  forms: UnaryForms | { register: SizedRun; memory: SizedRun },
  width: Width,
  lockable: boolean,
): Run {
  const size = sizeOf(d, width);
  if (d.memory) {
    d.lockable = lockable;
    return forms.memory[size];
  }
  d.op.dst = d.register(d.rm, size);
  return forms.register[size];
}

/** `op reg, r/m` where the source has a size of its own. */
export function extend(forms: ExtendForms, sourceSize: Size | 'same'): Decode {
  return (d) => {
    d.modrm();
    d.op.dst = d.register(d.reg, d.size);
    if (d.memory) return forms.memory[d.size];
    d.op.src = d.register(d.rm, sourceSize === 'same' ? d.size : sourceSize);
    return forms.register[d.size];
  };
}

/** `op r/m, reg` where only memory and register forms exist: XCHG, XADD, CMPXCHG, BT with a register. */
export function rmSource(forms: ExtendForms, width: Width, lockable: boolean): Decode {
  return (d) => {
    const size = sizeOf(d, width);
    d.modrm();
    d.op.src = d.register(d.reg, size);
    if (d.memory) {
      d.lockable = lockable;
      return forms.memory[size];
    }
    d.op.dst = d.register(d.rm, size);
    return forms.register[size];
  };
}

/** Picks the handler of a stack instruction: 16 bits with an operand-size prefix, else that of the code. */
export function stackRun(d: Decoder, forms: StackForms): Run {
  return d.operand16 ? forms.w : forms.native;
}

/** The register index that a stack instruction uses, which has no 32-bit form in 64-bit code. */
export function stackRegister(d: Decoder): number {
  return d.opcodeRegister(d.operand16 ? 'w' : 'q');
}

/** An instruction for 32-bit code only, or for 64-bit code only. */
export function onlyIn(mode: 32 | 64, decode: Decode): Decode {
  return (d) => (d.mode64 === (mode === 64) ? decode(d) : d.undefined());
}

import { getU16, getU32 } from '../abi/bytes.ts';

/*
 * Classic BPF as seccomp has it (linux/filter.h, seccomp(2)): loads of words of the data, a scratch memory of 16 words,
 * arithmetic, jumps forward.
 */

const INSTRUCTION_SIZE = 8;
const SCRATCH_WORDS = 16;
const CLASS = { LD: 0, LDX: 1, ST: 2, STX: 3, ALU: 4, JMP: 5, RET: 6, MISC: 7 } as const;
const MODE_IMMEDIATE = 0x00;
const MODE_ABSOLUTE = 0x20;
const MODE_MEMORY = 0x60;
const MODE_LENGTH = 0x80;
const SOURCE_X = 0x08;
const RETURN_A = 0x10;
const TXA = 0x80;

const ARITHMETIC: { readonly [operation: number]: (a: number, b: number) => number } = {
  0: (a, b) => a + b,
  16: (a, b) => a - b,
  32: (a, b) => Math.imul(a, b),
  48: (a, b) => (b === 0 ? 0 : Math.floor(a / b)),
  64: (a, b) => a | b,
  80: (a, b) => a & b,
  96: (a, b) => (b < 32 ? a << b : 0),
  112: (a, b) => (b < 32 ? a >>> b : 0),
  128: (a) => -a,
  160: (a, b) => a ^ b,
};

const COMPARISONS: { readonly [operation: number]: (a: number, b: number) => boolean } = {
  16: (a, b) => a === b,
  32: (a, b) => a > b,
  48: (a, b) => a >= b,
  64: (a, b) => (a & b) !== 0,
};

/**
 * What a program (an array of struct sock_filter) returns for `data`; undefined when it is none that the kernel would
 * have taken.
 */
export function runClassicBpf(program: Uint8Array, data: Uint8Array): number | undefined {
  const scratch = new Uint32Array(SCRATCH_WORDS);
  const count = Math.floor(program.length / INSTRUCTION_SIZE);
  let a = 0;
  let x = 0;
  const load = (mode: number, k: number): number | undefined => {
    if (mode === MODE_IMMEDIATE) return k;
    if (mode === MODE_LENGTH) return data.length;
    if (mode === MODE_MEMORY) return scratch[k];
    return mode === MODE_ABSOLUTE && k + 4 <= data.length ? getU32(data, k) : undefined;
  };
  // Jumps only go forward: it ends.
  for (let pc = 0; pc < count; pc++) {
    const at = pc * INSTRUCTION_SIZE;
    const code = getU16(program, at);
    const k = getU32(program, at + 4);
    const operand = code & SOURCE_X ? x : k;
    switch (code & 7) {
      case CLASS.LD:
      case CLASS.LDX: {
        const value = load(code & 0xe0, k);
        if (value === undefined) return undefined;
        if ((code & 7) === CLASS.LD) a = value;
        else x = value;
        break;
      }
      case CLASS.ST:
      case CLASS.STX:
        if (k >= SCRATCH_WORDS) return undefined;
        scratch[k] = (code & 7) === CLASS.ST ? a : x;
        break;
      case CLASS.ALU: {
        const operation = ARITHMETIC[code & 0xf0];
        if (!operation) return undefined;
        a = operation(a, operand) >>> 0;
        break;
      }
      case CLASS.JMP: {
        if ((code & 0xf0) === 0) {
          pc += k;
          break;
        }
        const comparison = COMPARISONS[code & 0xf0];
        if (!comparison) return undefined;
        pc += program[at + (comparison(a, operand) ? 2 : 3)]!;
        break;
      }
      case CLASS.RET:
        return code & RETURN_A ? a : k;
      default:
        if (code & TXA) a = x;
        else x = a;
    }
  }
  return undefined;
}

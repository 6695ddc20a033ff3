import { ARITHMETIC_FLAGS, FLAG, SYSTEM_FLAGS } from './constants.ts';
import type { Cpu } from './cpu.ts';

/** Even parity of each byte value, as the PF bit. */
const PARITY = new Uint8Array(256);
for (let i = 0; i < 256; i++) {
  let bits = i ^ (i >> 4);
  bits ^= bits >> 2;
  bits ^= bits >> 1;
  PARITY[i] = bits & 1 ? 0 : FLAG.PF;
}

/** rflags as the guest sees them. */
export function getFlags(c: Cpu): number {
  return (
    c.systemFlags |
    2 |
    c.cf |
    PARITY[c.pr & 0xff]! |
    (c.ar & FLAG.AF) |
    (c.zr === 0 ? FLAG.ZF : 0) |
    (c.sr < 0 ? FLAG.SF : 0) |
    (c.or < 0 ? FLAG.OF : 0)
  );
}

/** Sets the flags that arithmetic sets from an image of rflags. */
export function setArithmeticFlags(c: Cpu, flags: number): void {
  c.cf = flags & FLAG.CF;
  c.pr = flags & FLAG.PF ? 0 : 1;
  c.ar = flags & FLAG.AF;
  c.zr = flags & FLAG.ZF ? 0 : 1;
  c.sr = flags & FLAG.SF ? -1 : 0;
  c.or = flags & FLAG.OF ? -1 : 0;
}

/** Sets all of rflags. Bits that do not exist are ignored. */
export function setFlags(c: Cpu, flags: number): void {
  setArithmeticFlags(c, flags & ARITHMETIC_FLAGS);
  c.setSystemFlags(flags & SYSTEM_FLAGS);
}

const overflow = (c: Cpu) => c.or < 0;
const below = (c: Cpu) => c.cf !== 0;
const zero = (c: Cpu) => c.zr === 0;
const belowOrEqual = (c: Cpu) => c.cf !== 0 || c.zr === 0;
const sign = (c: Cpu) => c.sr < 0;
const parity = (c: Cpu) => PARITY[c.pr & 0xff] !== 0;
const less = (c: Cpu) => (c.sr ^ c.or) < 0;
const lessOrEqual = (c: Cpu) => c.zr === 0 || (c.sr ^ c.or) < 0;

export type Condition = (c: Cpu) => boolean;

/** The sixteen conditions of Jcc, SETcc and CMOVcc by their encoding. */
export const CONDITIONS: readonly Condition[] = [
  overflow,
  (c) => c.or >= 0,
  below,
  (c) => c.cf === 0,
  zero,
  (c) => c.zr !== 0,
  belowOrEqual,
  (c) => c.cf === 0 && c.zr !== 0,
  sign,
  (c) => c.sr >= 0,
  parity,
  (c) => PARITY[c.pr & 0xff] === 0,
  less,
  (c) => (c.sr ^ c.or) >= 0,
  lessOrEqual,
  (c) => c.zr !== 0 && (c.sr ^ c.or) >= 0,
];

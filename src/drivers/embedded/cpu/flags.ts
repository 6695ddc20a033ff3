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

/** Number of the conditions of Jcc, SETcc and CMOVcc; an odd one is the opposite of the one before. */
export const CONDITIONS = 16;

/** Whether a condition holds, by its encoding. */
export function condition(c: Cpu, number: number): boolean {
  switch (number) {
    case 0:
      return c.or < 0;
    case 1:
      return c.or >= 0;
    case 2:
      return c.cf !== 0;
    case 3:
      return c.cf === 0;
    case 4:
      return c.zr === 0;
    case 5:
      return c.zr !== 0;
    case 6:
      return c.cf !== 0 || c.zr === 0;
    case 7:
      return c.cf === 0 && c.zr !== 0;
    case 8:
      return c.sr < 0;
    case 9:
      return c.sr >= 0;
    case 10:
      return PARITY[c.pr & 0xff] !== 0;
    case 11:
      return PARITY[c.pr & 0xff] === 0;
    case 12:
      return (c.sr ^ c.or) < 0;
    case 13:
      return (c.sr ^ c.or) >= 0;
    case 14:
      return c.zr === 0 || (c.sr ^ c.or) < 0;
    default:
      return c.zr !== 0 && (c.sr ^ c.or) >= 0;
  }
}

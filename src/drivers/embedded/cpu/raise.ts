import { hasErrorCode, VECTOR } from '../../../abi/x86.ts';
import type { Cpu } from './cpu.ts';
import { FAULT } from './signals.ts';

/** Ends the instruction with an exception. */
export function raise(c: Cpu, vector: number, code = 0): never {
  c.fault.set(vector, hasErrorCode(vector), code);
  throw FAULT;
}

export function undefinedOpcode(c: Cpu): never {
  raise(c, VECTOR.UD);
}

/** Ends the instruction with #PF. */
export function pageFault(c: Cpu, lo: number, hi: number, code: number): never {
  c.fault.set(VECTOR.PF, true, code);
  c.fault.addressLo = lo;
  c.fault.addressHi = hi;
  throw FAULT;
}

/** For instructions of the kernel only. */
export function requireRing0(c: Cpu): void {
  if (c.cpl !== 0) raise(c, VECTOR.GP, 0);
}

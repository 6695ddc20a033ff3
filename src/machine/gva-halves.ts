import type { Gva } from './address.ts';

/*
 * A gva as two 32-bit integers: storing a bigint costs no allocation, shifting and masking one does.
 * Like all of abi/, this counts on a little-endian host.
 */

const scratch = new BigUint64Array(1);
const halves = new Int32Array(scratch.buffer);

/** Bits 31-0, as a signed integer. */
export function lowHalf(gva: Gva): number {
  scratch[0] = gva;
  return halves[0]!;
}

/** Bits 63-32, as a signed integer. */
export function highHalf(gva: Gva): number {
  scratch[0] = gva;
  return halves[1]!;
}

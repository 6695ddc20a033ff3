/*
 * 64-bit values outside hot paths: between the halves that the processor works with and the bigint of the
 * machine contract.
 */

export function join64(lo: number, hi: number): bigint {
  return (BigInt(hi >>> 0) << 32n) | BigInt(lo >>> 0);
}

export function lowHalf(value: bigint): number {
  return Number(BigInt.asIntN(32, value));
}

export function highHalf(value: bigint): number {
  return Number(BigInt.asIntN(32, value >> 32n));
}

/** Whether a linear address is canonical: bits 63 to 47 are equal. `hi` is its high half. */
export function isCanonical(hi: number): boolean {
  const top = hi >> 15;
  return top === 0 || top === -1;
}

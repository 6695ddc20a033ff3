/*
 * Little-endian integers in a Uint8Array at any alignment. A DataView per message would be an allocation
 * per message; these need none.
 */

const scratchBytes = new Uint8Array(8);
const scratchU64 = new BigUint64Array(scratchBytes.buffer);
const scratchS64 = new BigInt64Array(scratchBytes.buffer);

export function getU16(bytes: Uint8Array, at: number): number {
  return bytes[at]! | (bytes[at + 1]! << 8);
}

export function getU32(bytes: Uint8Array, at: number): number {
  return (bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24)) >>> 0;
}

export function getS32(bytes: Uint8Array, at: number): number {
  return bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24);
}

export function getU64(bytes: Uint8Array, at: number): bigint {
  for (let i = 0; i < 8; i++) scratchBytes[i] = bytes[at + i]!;
  return scratchU64[0]!;
}

export function getS64(bytes: Uint8Array, at: number): bigint {
  for (let i = 0; i < 8; i++) scratchBytes[i] = bytes[at + i]!;
  return scratchS64[0]!;
}

/** A u64 as a number: exact below 2^53, rounded above it (all-ones reads as 2^64). */
export function getU64Number(bytes: Uint8Array, at: number): number {
  return getU32(bytes, at) + getU32(bytes, at + 4) * 0x1_0000_0000;
}

export function putU16(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value;
  bytes[at + 1] = value >>> 8;
}

export function putU32(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value;
  bytes[at + 1] = value >>> 8;
  bytes[at + 2] = value >>> 16;
  bytes[at + 3] = value >>> 24;
}

export function putU64(bytes: Uint8Array, at: number, value: bigint): void {
  scratchU64[0] = value;
  for (let i = 0; i < 8; i++) bytes[at + i] = scratchBytes[i]!;
}

/** The reverse of {@link getU64Number}: 2^64 and above are written as all-ones. */
export function putU64Number(bytes: Uint8Array, at: number, value: number): void {
  if (value >= 2 ** 64) {
    bytes.fill(0xff, at, at + 8);
    return;
  }
  putU32(bytes, at, value % 0x1_0000_0000);
  putU32(bytes, at + 4, Math.floor(value / 0x1_0000_0000));
}

/** Whether `length` bytes from `at` are all zero. */
export function isZero(bytes: Uint8Array, at: number, length: number): boolean {
  for (let i = at; i < at + length; i++) if (bytes[i] !== 0) return false;
  return true;
}

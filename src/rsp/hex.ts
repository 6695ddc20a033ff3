import { KvmiError } from '../error.ts';

/** Bytes as hexadecimal digits. */
export function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('hex');
}

/** The bytes of hexadecimal digits; undefined when there is anything else. */
export function unhex(text: string): Uint8Array | undefined {
  return text.length % 2 === 0 && /^[0-9a-f]*$/i.test(text) ? Buffer.from(text, 'hex') : undefined;
}

/** A value as the bytes of a register, little-endian, in hexadecimal. */
export function registerToHex(value: bigint, size: number): string {
  const bytes = Buffer.alloc(size);
  for (let i = 0; i < size; i++) bytes[i] = Number((value >> BigInt(8 * i)) & 0xffn);
  return hex(bytes);
}

/** The reverse of {@link registerToHex}. Anything but hexadecimal digits throws E_GDB_PROTOCOL. */
export function registerFromHex(text: string): bigint {
  const bytes = unhex(text);
  if (bytes === undefined || bytes.length === 0) {
    throw new KvmiError('E_GDB_PROTOCOL', `not the value of a register: ${text.slice(0, 40)}`);
  }
  return BigInt(`0x${hex(bytes.reverse())}`);
}

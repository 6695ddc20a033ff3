import { getU16, getU32, putU16, putU32 } from '../abi/bytes.ts';
import { KvmiError } from '../error.ts';

/** Bytes of the header of every message: id u16, size u16, seq u32 (kvmi.rst, "Message format"). */
export const HEADER_SIZE = 8;
/** The largest payload in both directions: 8192 bytes less the header. */
export const MAX_PAYLOAD = 8184;

/** A peer broke the protocol in a way that closes the connection. */
export class ProtocolError extends KvmiError {
  constructor(message: string, data?: Readonly<Record<string, unknown>>) {
    super('E_PROTOCOL', message, data ? { data } : {});
    this.name = 'ProtocolError';
  }
}

/** Writes a message header at `at`. */
export function putHeader(into: Uint8Array, at: number, id: number, size: number, seq: number): void {
  putU16(into, at, id);
  putU16(into, at + 2, size);
  putU32(into, at + 4, seq);
}

/** A header as an object; for tests and logs. */
export function getHeader(from: Uint8Array, at = 0): { id: number; size: number; seq: number } {
  return { id: getU16(from, at), size: getU16(from, at + 2), seq: getU32(from, at + 4) };
}

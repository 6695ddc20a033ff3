import { KvmiError } from '../error.ts';

/*
 * The packet layer of GDB's remote protocol ("GDB Remote Serial Protocol", Overview): `$payload#checksum`,
 * with `}` escaping a byte and `*` repeating one.
 */

/** No packet of QEMU is longer: its buffer holds 4096 bytes, and a byte takes at most two characters. */
const PACKET_LIMIT = 1 << 16;

const DOLLAR = 0x24;
const HASH = 0x23;
const ESCAPE = 0x7d;
const REPEAT = 0x2a;
const ESCAPE_XOR = 0x20;
/** A repeat count is sent as a printable character this much larger. */
const REPEAT_BIAS = 29;

const NEEDS_ESCAPE = /[#$}*]/g;

/** The packet for `payload` (a latin-1 string), escaped and with its checksum. */
export function encodePacket(payload: string): string {
  const escaped = payload.replace(
    NEEDS_ESCAPE,
    (character) => `}${String.fromCharCode(character.charCodeAt(0) ^ ESCAPE_XOR)}`,
  );
  let sum = 0;
  for (let i = 0; i < escaped.length; i++) sum += escaped.charCodeAt(i);
  return `$${escaped}#${(sum & 0xff).toString(16).padStart(2, '0')}`;
}

/** Finds the packets in a byte stream, however it is cut; acknowledgements and noise between them are dropped. */
export class PacketDecoder {
  #rest: Buffer = Buffer.alloc(0);

  /** The payloads (latin-1) that `chunk` completes. A bad checksum or a packet without end throws E_GDB_PROTOCOL. */
  push(chunk: Buffer): string[] {
    const bytes = this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk]);
    const payloads: string[] = [];
    let at = bytes.indexOf(DOLLAR);
    while (at >= 0) {
      const hash = bytes.indexOf(HASH, at);
      if (hash < 0 || hash + 2 >= bytes.length) break;
      payloads.push(
        decodePayload(bytes.subarray(at + 1, hash), bytes.toString('latin1', hash + 1, hash + 3)),
      );
      at = bytes.indexOf(DOLLAR, hash + 3);
    }
    this.#rest = at < 0 ? Buffer.alloc(0) : Buffer.from(bytes.subarray(at));
    if (this.#rest.length > PACKET_LIMIT) {
      throw new KvmiError('E_GDB_PROTOCOL', `a packet of the gdbstub is longer than ${PACKET_LIMIT} bytes`);
    }
    return payloads;
  }
}

function decodePayload(raw: Buffer, checksum: string): string {
  let sum = 0;
  let plain = true;
  for (const byte of raw) {
    sum += byte;
    if (byte === ESCAPE || byte === REPEAT) plain = false;
  }
  if ((sum & 0xff) !== Number.parseInt(checksum, 16)) {
    throw new KvmiError('E_GDB_PROTOCOL', 'a packet of the gdbstub has a wrong checksum');
  }
  return plain ? raw.toString('latin1') : expand(raw);
}

function expand(raw: Buffer): string {
  const bytes: number[] = [];
  for (let i = 0; i < raw.length; i++) {
    const byte = raw[i]!;
    if (byte === ESCAPE) {
      bytes.push((raw[++i] ?? 0) ^ ESCAPE_XOR);
    } else if (byte === REPEAT) {
      const count = (raw[++i] ?? 0) - REPEAT_BIAS;
      const last = bytes.at(-1);
      if (last === undefined || count < 0)
        throw new KvmiError('E_GDB_PROTOCOL', 'a repeat with nothing to repeat');
      for (let n = 0; n < count; n++) bytes.push(last);
    } else {
      bytes.push(byte);
    }
    if (bytes.length > PACKET_LIMIT) throw new KvmiError('E_GDB_PROTOCOL', 'a packet expands without end');
  }
  return Buffer.from(bytes).toString('latin1');
}

/** Why the virtual CPUs stopped. */
export interface StopReply {
  readonly signal: number;
  /** The vCPU that reported it; undefined when the reply names none. */
  readonly vcpu: number | undefined;
  /** True when a watchpoint fired. */
  readonly watchpoint: boolean;
}

export const SIGINT = 2;
export const SIGTRAP = 5;

/** Decodes `T05thread:p01.02;…` and `S05`; undefined for anything else, such as the exit of the VM (`W00`). */
export function parseStopReply(payload: string): StopReply | undefined {
  const match = /^[TS]([0-9a-f]{2})(.*)$/i.exec(payload);
  if (match === null) return undefined;
  const thread = /thread:(?:p[0-9a-f]+\.)?([0-9a-f]{1,8});/i.exec(match[2]!);
  return {
    signal: Number.parseInt(match[1]!, 16),
    vcpu: thread === null ? undefined : Number.parseInt(thread[1]!, 16) - 1,
    watchpoint: /(?:^|;)[ra]?watch:/.test(match[2]!),
  };
}

/** How the gdbstub names a vCPU. */
export function threadId(vcpu: number): string {
  return `p1.${(vcpu + 1).toString(16)}`;
}

/** A value as the bytes of a register, little-endian, in hexadecimal. */
export function registerToHex(value: bigint, size: number): string {
  const bytes = Buffer.alloc(size);
  for (let i = 0; i < size; i++) bytes[i] = Number((value >> BigInt(8 * i)) & 0xffn);
  return bytes.toString('hex');
}

/** The reverse of {@link registerToHex}. Anything but hexadecimal digits throws E_GDB_PROTOCOL. */
export function registerFromHex(hex: string): bigint {
  if (!/^(?:[0-9a-f]{2})+$/i.test(hex)) {
    throw new KvmiError('E_GDB_PROTOCOL', `not the value of a register: ${hex.slice(0, 40)}`);
  }
  return BigInt(`0x${Buffer.from(hex, 'hex').reverse().toString('hex')}`);
}

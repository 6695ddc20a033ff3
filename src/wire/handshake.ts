import { createHash, timingSafeEqual } from 'node:crypto';
import { getU32, putU32 } from '../abi/bytes.ts';
import { address, byteArray, pad, s64, struct, u8, u32 } from '../abi/struct.ts';
import { KvmiError } from '../error.ts';

/*
 * The handshake of device manager and tool, on the same connection before the descriptor is hooked. There
 * is no version and no magic: both structures start with their own size.
 */

const HELLO_SIZE = 96;
const HELLO_MAP_SIZE = 104;
const HELLO_MINIMUM = 32;
const HELLO_LIMIT = 65536;
const ANSWER_SIZE = 24;
const ANSWER_LIMIT = 4096;
const MAX_MAP_ENTRIES = 255;

/** First variant: from the device manager to the tool. */
export const handshakeHello = struct('qemu_vmi_to_introspector', HELLO_SIZE, {
  struct_size: u32,
  uuid: byteArray(16),
  cpu_type: u8,
  padding: pad(3),
  start_time: s64,
  name: byteArray(64),
});

/** An entry of the memory map of the second variant (an E820 entry). */
export const handshakeMapEntry = struct('e820_entry', 24, {
  address,
  length: address,
  type: u32,
  padding: pad(4),
});

/** From the tool to the device manager. */
export const handshakeAnswer = struct('qemu_vmi_from_introspector', ANSWER_SIZE, {
  struct_size: u32,
  cookie_hash: byteArray(20),
});

/** `cpu_type` of the second variant. */
export const CPU_TYPE = { i386: 0, x86_64: 1, unknown: 255 } as const;

export interface MemoryMapEntry {
  readonly address: number;
  readonly length: number;
  /** E820 type: 1 is memory. */
  readonly type: number;
}

/** What a device manager says about its VM. */
export interface HandshakeHello {
  /** 16 bytes in text order. */
  readonly uuid: Uint8Array;
  /** Milliseconds of the host's CLOCK_MONOTONIC. */
  readonly startTime: number;
  /** Cut to 63 bytes of UTF-8 on the wire. */
  readonly name: string;
  /** Present in the second variant only. */
  readonly memoryMap?: readonly MemoryMapEntry[];
}

/** A handshake failed; the connection is closed. */
export class HandshakeError extends KvmiError {
  constructor(message: string, hint?: string) {
    super('E_HANDSHAKE', message, hint ? { hint } : {});
    this.name = 'HandshakeError';
  }
}

/** The device manager's structure: the second variant when there is a memory map. */
export function encodeHello(hello: HandshakeHello): Uint8Array {
  const entries = hello.memoryMap?.slice(0, MAX_MAP_ENTRIES);
  const size = entries ? HELLO_MAP_SIZE + entries.length * handshakeMapEntry.size : HELLO_SIZE;
  const bytes = new Uint8Array(size);
  handshakeHello.write(bytes, 0, {
    struct_size: size,
    uuid: hello.uuid,
    cpu_type: entries ? CPU_TYPE.x86_64 : 0,
    start_time: BigInt(Math.trunc(hello.startTime)),
    name: new TextEncoder().encode(hello.name).subarray(0, 63),
  });
  if (entries) {
    bytes[HELLO_SIZE] = entries.length;
    const sorted = [...entries].sort((a, b) => a.address - b.address);
    sorted.forEach((entry, i) => {
      handshakeMapEntry.write(bytes, HELLO_MAP_SIZE + i * handshakeMapEntry.size, entry);
    });
  }
  return bytes;
}

function decodeHello(bytes: Uint8Array): HandshakeHello {
  const whole = new Uint8Array(Math.max(bytes.length, HELLO_MAP_SIZE));
  whole.set(bytes);
  const fields = handshakeHello.read(whole, 0);
  const end = fields.name.subarray(0, 63).indexOf(0);
  const hello = {
    uuid: fields.uuid,
    startTime: Number(fields.start_time),
    name: new TextDecoder().decode(fields.name.subarray(0, end < 0 ? 63 : end)),
  };
  if (bytes.length < HELLO_MAP_SIZE) return hello;
  const fit = Math.floor((bytes.length - HELLO_MAP_SIZE) / handshakeMapEntry.size);
  const count = Math.min(whole[HELLO_SIZE]!, fit);
  const memoryMap = Array.from({ length: count }, (_, i) =>
    handshakeMapEntry.read(whole, HELLO_MAP_SIZE + i * handshakeMapEntry.size),
  );
  return { ...hello, memoryMap };
}

/** SHA-1 of the shared secret's bytes: what a tool sends instead of it. */
export function cookieHash(secret: Uint8Array): Uint8Array {
  return new Uint8Array(createHash('sha1').update(secret).digest());
}

/** The tool's structure. Without a cookie the hash is zeros. */
export function encodeAnswer(hash: Uint8Array = new Uint8Array(20)): Uint8Array {
  const bytes = new Uint8Array(ANSWER_SIZE);
  handshakeAnswer.write(bytes, 0, { struct_size: ANSWER_SIZE, cookie_hash: hash });
  return bytes;
}

/** Whether a tool's cookie hash is that of `secret`; takes the same time wherever they differ. */
export function cookieMatches(hash: Uint8Array, secret: Uint8Array): boolean {
  return hash.length === 20 && timingSafeEqual(hash, cookieHash(secret));
}

/**
 * Collects one structure that starts with its own size and no byte more: what follows belongs to KVMI.
 */
export class HandshakeReader {
  readonly #minimum: number;
  readonly #limit: number;
  #size = 4;
  #bytes = new Uint8Array(4);
  #length = 0;

  private constructor(minimum: number, limit: number) {
    this.#minimum = minimum;
    this.#limit = limit;
  }

  /** For the tool: reads the device manager's structure. */
  static hello(): HandshakeReader {
    return new HandshakeReader(HELLO_MINIMUM, HELLO_LIMIT);
  }

  /** For the device manager: reads the tool's structure. */
  static answer(): HandshakeReader {
    return new HandshakeReader(ANSWER_SIZE, ANSWER_LIMIT);
  }

  /**
   * Takes bytes from `chunk`.
   *
   * @returns how many were taken; fewer than all of them when the structure is complete.
   * @throws HandshakeError when the announced size is out of range.
   */
  push(chunk: Uint8Array): number {
    let at = 0;
    while (at < chunk.length && this.#length < this.#size) {
      const end = Math.min(chunk.length, at + this.#size - this.#length);
      this.#bytes.set(chunk.subarray(at, end), this.#length);
      this.#length += end - at;
      at = end;
      if (this.#length === 4 && this.#size === 4) this.#announce(getU32(this.#bytes, 0));
    }
    return at;
  }

  #announce(size: number): void {
    if (size < this.#minimum || size > this.#limit) {
      throw new HandshakeError(
        `the peer's handshake announces ${size} bytes; ${this.#minimum} to ${this.#limit} are expected`,
        'Check that the other end speaks the KVMI handshake.',
      );
    }
    const whole = new Uint8Array(size);
    putU32(whole, 0, size);
    this.#bytes = whole;
    this.#size = size;
  }

  get complete(): boolean {
    return this.#size > 4 && this.#length === this.#size;
  }

  /** The device manager's structure. Call when complete. */
  readHello(): HandshakeHello {
    return decodeHello(this.#bytes);
  }

  /** The tool's cookie hash (20 bytes). Call when complete. */
  readCookieHash(): Uint8Array {
    return handshakeAnswer.read(this.#bytes, 0).cookie_hash;
  }
}

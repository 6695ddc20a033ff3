/*
 * Packets of the GDB remote serial protocol (GDB manual, appendix E "Overview"): `$data#checksum`, where data has `}`
 * in front of a byte that was XORed with 0x20, and a stub may write `*` and a count after a byte that is repeated.
 * Between packets: `+`, `-`, and 0x03 for an interrupt.
 */

const DOLLAR = 0x24;
const HASH = 0x23;
const ESCAPE = 0x7d;
const STAR = 0x2a;
const ESCAPE_XOR = 0x20;
/** A repeat count is sent as a printable character this much larger. */
const REPEAT_BIAS = 29;
const INTERRUPT = 0x03;
const ACK = 0x2b;
const NAK = 0x2d;

/** Data bytes of a packet, at most, in both directions, unless a reader is told otherwise. Announced as PacketSize. */
export const MAX_PACKET = 0x4000;

/**
 * What arrived, in order. `corrupt`: a packet with a wrong checksum, or one that repeats nothing. `oversized`: the
 * reader takes nothing more.
 */
export type Incoming =
  | { readonly kind: 'packet'; readonly data: Uint8Array }
  | { readonly kind: 'ack' | 'nak' | 'interrupt' | 'corrupt' | 'oversized' };

export interface PacketReaderOptions {
  /** Data bytes of a packet, at most; default {@link MAX_PACKET}. */
  readonly limit?: number;
  /** Whether `*` repeats a byte: in what a stub sends, not in what it is sent. Default false. */
  readonly repeats?: boolean;
}

const MUST_ESCAPE = new Set([DOLLAR, HASH, ESCAPE, STAR]);

/** Data, or text of one byte a character, as a packet. */
export function encodePacket(data: Uint8Array | string): Uint8Array {
  const bytes = typeof data === 'string' ? Buffer.from(data, 'latin1') : data;
  const packet = Buffer.allocUnsafe(2 * bytes.length + 4);
  let used = 0;
  let sum = 0;
  packet[used++] = DOLLAR;
  const put = (byte: number): void => {
    packet[used++] = byte;
    sum += byte;
  };
  for (const byte of bytes) {
    if (MUST_ESCAPE.has(byte)) {
      put(ESCAPE);
      put(byte ^ ESCAPE_XOR);
    } else {
      put(byte);
    }
  }
  packet[used++] = HASH;
  used += packet.write((sum & 0xff).toString(16).padStart(2, '0'), used, 'latin1');
  return packet.subarray(0, used);
}

/** Finds packets in a stream of bytes that is cut anywhere. Memory is bounded by the limit of a packet. */
export class PacketReader {
  readonly #data: Uint8Array;
  readonly #repeats: boolean;
  #used = 0;
  #sum = 0;
  #damaged = false;
  #state: 'between' | 'data' | 'escaped' | 'repeat' | 'checksum' | 'checksum2' | 'oversized' = 'between';
  #checksum = '';

  constructor({ limit = MAX_PACKET, repeats = false }: PacketReaderOptions = {}) {
    this.#data = new Uint8Array(limit);
    this.#repeats = repeats;
  }

  /** What the bytes complete. */
  feed(bytes: Uint8Array): Incoming[] {
    const found: Incoming[] = [];
    for (const byte of bytes) {
      const incoming = this.#take(byte);
      if (incoming) found.push(incoming);
    }
    return found;
  }

  #take(byte: number): Incoming | undefined {
    switch (this.#state) {
      case 'between':
        return this.#between(byte);
      case 'data':
        return this.#inside(byte);
      case 'escaped':
        this.#sum += byte;
        this.#state = 'data';
        return this.#append(byte ^ ESCAPE_XOR, 1);
      case 'repeat':
        this.#sum += byte;
        this.#state = 'data';
        return this.#repeat(byte - REPEAT_BIAS);
      case 'checksum':
        this.#checksum = String.fromCharCode(byte);
        this.#state = 'checksum2';
        return undefined;
      case 'checksum2':
        return this.#complete(this.#checksum + String.fromCharCode(byte));
      case 'oversized':
        return undefined;
    }
  }

  #between(byte: number): Incoming | undefined {
    if (byte === DOLLAR) this.#begin();
    else if (byte === INTERRUPT) return { kind: 'interrupt' };
    else if (byte === ACK) return { kind: 'ack' };
    else if (byte === NAK) return { kind: 'nak' };
    return undefined;
  }

  #begin(): void {
    this.#used = 0;
    this.#sum = 0;
    this.#damaged = false;
    this.#state = 'data';
  }

  #inside(byte: number): Incoming | undefined {
    if (byte === HASH) {
      this.#state = 'checksum';
      return undefined;
    }
    if (byte === DOLLAR) {
      // The rest of the packet before was lost.
      this.#begin();
      return { kind: 'corrupt' };
    }
    this.#sum += byte;
    if (byte === ESCAPE) this.#state = 'escaped';
    else if (byte === STAR && this.#repeats) this.#state = 'repeat';
    else return this.#append(byte, 1);
    return undefined;
  }

  #repeat(count: number): Incoming | undefined {
    if (count >= 0 && this.#used > 0) return this.#append(this.#data[this.#used - 1]!, count);
    this.#damaged = true;
    return undefined;
  }

  #append(byte: number, count: number): Incoming | undefined {
    const end = this.#used + count;
    if (end > this.#data.length) {
      this.#state = 'oversized';
      return { kind: 'oversized' };
    }
    this.#data.fill(byte, this.#used, end);
    this.#used = end;
    return undefined;
  }

  #complete(checksum: string): Incoming {
    this.#state = 'between';
    const right = /^[0-9a-f]{2}$/i.test(checksum) && Number.parseInt(checksum, 16) === (this.#sum & 0xff);
    return right && !this.#damaged
      ? { kind: 'packet', data: this.#data.slice(0, this.#used) }
      : { kind: 'corrupt' };
  }
}

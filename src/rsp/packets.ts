/*
 * Packets of the GDB remote serial protocol (GDB manual, appendix E "Overview"): `$data#checksum`, where data has `}`
 * in front of a byte that was XORed with 0x20. Between packets: `+`, `-`, and 0x03 for an interrupt.
 */

const DOLLAR = 0x24;
const HASH = 0x23;
const ESCAPE = 0x7d;
const STAR = 0x2a;
const ESCAPE_XOR = 0x20;
const INTERRUPT = 0x03;
const ACK = 0x2b;
const NAK = 0x2d;

/** Data bytes of a packet, at most, in both directions. Announced as PacketSize. */
export const MAX_PACKET = 0x4000;

/** What arrived, in order. `corrupt`: a packet with a wrong checksum. `oversized`: the reader takes nothing more. */
export type Incoming =
  | { readonly kind: 'packet'; readonly data: Uint8Array }
  | { readonly kind: 'ack' | 'nak' | 'interrupt' | 'corrupt' | 'oversized' };

const MUST_ESCAPE = new Set([DOLLAR, HASH, ESCAPE, STAR]);

/** Data as a packet. */
export function encodePacket(data: Uint8Array): Uint8Array {
  const packet = Buffer.allocUnsafe(2 * data.length + 4);
  let used = 0;
  let sum = 0;
  packet[used++] = DOLLAR;
  const put = (byte: number): void => {
    packet[used++] = byte;
    sum += byte;
  };
  for (const byte of data) {
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

/** Finds packets in a stream of bytes that is cut anywhere. Memory is bounded by {@link MAX_PACKET}. */
export class PacketReader {
  readonly #data = new Uint8Array(MAX_PACKET);
  #used = 0;
  #sum = 0;
  #state: 'between' | 'data' | 'escaped' | 'checksum' | 'checksum2' | 'oversized' = 'between';
  #checksum = '';

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
        return this.#append(byte ^ ESCAPE_XOR);
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
    if (byte !== ESCAPE) return this.#append(byte);
    this.#state = 'escaped';
    return undefined;
  }

  #append(byte: number): Incoming | undefined {
    if (this.#used < MAX_PACKET) {
      this.#data[this.#used++] = byte;
      return undefined;
    }
    this.#state = 'oversized';
    return { kind: 'oversized' };
  }

  #complete(checksum: string): Incoming {
    this.#state = 'between';
    const right = /^[0-9a-f]{2}$/i.test(checksum) && Number.parseInt(checksum, 16) === (this.#sum & 0xff);
    return right ? { kind: 'packet', data: this.#data.slice(0, this.#used) } : { kind: 'corrupt' };
  }
}

/** Bytes as hexadecimal digits. */
export function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('hex');
}

/** The bytes of hexadecimal digits; undefined when there is anything else. */
export function unhex(text: string): Uint8Array | undefined {
  return text.length % 2 === 0 && /^[0-9a-f]*$/i.test(text) ? Buffer.from(text, 'hex') : undefined;
}

/*
 * LZO1X, as makedumpfile -l packs pages with it (the stream is described in the kernel's Documentation/staging/lzo.rst):
 * instructions, each of which copies bytes that came before and then some that follow it.
 */

/** Copies `length` bytes that start `distance` before the end of what is there; the two may overlap. */
export function copyBack(into: Uint8Array, used: number, distance: number, length: number): boolean {
  if (distance > used || distance < 1 || length > into.length - used) return false;
  for (let i = used; i < used + length; i++) into[i] = into[i - distance]!;
  return true;
}

/** Instructions, by the smallest first byte. `bits`: how many of it are the length, which the first value is added to. */
interface Match {
  readonly from: number;
  readonly lengthBits: number;
  readonly length: number;
  readonly shift: number;
}

const SHORT_MATCHES: readonly Match[] = [
  { from: 128, lengthBits: 2, length: 5, shift: 5 },
  { from: 64, lengthBits: 1, length: 3, shift: 5 },
];

/** After a run of literals that was not part of another instruction. */
const AFTER_RUN = 4;

/** The `size` bytes that `packed` stands for; undefined when it is damaged or stands for another number. */
export function unpackLzo(packed: Uint8Array, size: number): Uint8Array | undefined {
  return new LzoStream(packed, size).unpack();
}

class LzoStream {
  readonly #packed: Uint8Array;
  readonly #into: Uint8Array;
  #at = 0;
  #used = 0;
  /** How many literals the instruction before has copied; {@link AFTER_RUN} for a run of them. */
  #literals = 0;

  constructor(packed: Uint8Array, size: number) {
    this.#packed = packed;
    this.#into = new Uint8Array(size);
  }

  unpack(): Uint8Array | undefined {
    const first = this.#packed[0] ?? 0;
    if (first > 17) {
      this.#at = 1;
      const count = first - 17;
      if (!this.#copyLiterals(count)) return undefined;
      this.#literals = Math.min(count, AFTER_RUN);
    }
    while (this.#at < this.#packed.length) {
      const more = this.#instruction(this.#next());
      if (more === 'damaged') return undefined;
      if (more === 'end') return this.#used === this.#into.length ? this.#into : undefined;
    }
    return undefined;
  }

  /** Zero behind the end, where every instruction fails or ends. */
  #next(): number {
    return this.#packed[this.#at++] ?? 0;
  }

  #instruction(byte: number): 'more' | 'end' | 'damaged' {
    if (byte >= 64) return this.#shortMatch(byte);
    if (byte >= 32) {
      const length = 2 + this.#longLength(byte & 31, 31);
      return this.#longMatch(length, 1);
    }
    if (byte >= 16) {
      const length = 2 + this.#longLength(byte & 7, 7);
      return this.#longMatch(length, 16384 + ((byte & 8) << 11));
    }
    if (this.#literals === 0) return this.#run(byte);
    const [length, least] = this.#literals === AFTER_RUN ? [3, 2049] : [2, 1];
    return this.#match(length, (this.#next() << 2) + (byte >> 2) + least, byte & 3);
  }

  #run(byte: number): 'more' | 'damaged' {
    const done = this.#copyLiterals(3 + this.#longLength(byte, 15));
    this.#literals = AFTER_RUN;
    return done ? 'more' : 'damaged';
  }

  #shortMatch(byte: number): 'more' | 'damaged' {
    const { lengthBits, length, shift } = SHORT_MATCHES.find(({ from }) => byte >= from)!;
    const more = (byte >> shift) & ((1 << lengthBits) - 1);
    return this.#match(length + more, (this.#next() << 3) + ((byte >> 2) & 7) + 1, byte & 3);
  }

  #longMatch(length: number, least: number): 'more' | 'end' | 'damaged' {
    const word = this.#next() | (this.#next() << 8);
    const distance = least + (word >> 2);
    if (distance === 16384 && least >= 16384) return 'end';
    return this.#match(length, distance, word & 3);
  }

  #match(length: number, distance: number, literals: number): 'more' | 'damaged' {
    if (!copyBack(this.#into, this.#used, distance, length)) return 'damaged';
    this.#used += length;
    this.#literals = literals;
    return this.#copyLiterals(literals) ? 'more' : 'damaged';
  }

  /** A length that does not fit its bits goes on in bytes, of which zeros stand for 255. */
  #longLength(bits: number, most: number): number {
    if (bits !== 0) return bits;
    let length = most;
    while (this.#at < this.#packed.length) {
      const byte = this.#next();
      if (byte !== 0) return length + byte;
      length += 255;
    }
    return length;
  }

  #copyLiterals(count: number): boolean {
    const end = this.#at + count;
    if (end > this.#packed.length || this.#used + count > this.#into.length) return false;
    this.#into.set(this.#packed.subarray(this.#at, end), this.#used);
    this.#at = end;
    this.#used += count;
    return true;
  }
}

const ENTRIES = 256;
/** Words of an entry: linear address of the page (low, high), offset of its frame in the backing store, gfn. */
const WORDS = 4;
const CODE_ENTRIES = 64;
/** Never the low half of a page address. */
const EMPTY = 1;
/** Entries filled since the last flush that are remembered, so that a flush need not clear whole tables. */
const REMEMBERED = 64;

/** The word of an entry for a linear address is `(lo >>> TLB_SHIFT) & TLB_MASK`. */
export const TLB_SHIFT = 10;
export const TLB_MASK = (ENTRIES - 1) * WORDS;

/**
 * Translations of one privilege level. A page is in `read` or `write` only if that access needs no check and no
 * notice: no page trap, no decoded code in it, dirty bit already set. `P` is a page of decoded code.
 */
export class Tlb<P> {
  readonly read = new Int32Array(ENTRIES * WORDS).fill(EMPTY);
  readonly write = new Int32Array(ENTRIES * WORDS).fill(EMPTY);
  readonly #codeTags = new Int32Array(CODE_ENTRIES * 2).fill(EMPTY);
  readonly #codePages: (P | undefined)[] = new Array(CODE_ENTRIES).fill(undefined);
  #hasCode = false;
  readonly #entries = new Uint16Array(REMEMBERED);
  /** How many entries were filled since the last flush; one more than can be remembered means many. */
  #filled = 0;

  flush(): void {
    if (this.#filled > REMEMBERED) {
      this.read.fill(EMPTY);
      this.write.fill(EMPTY);
    } else {
      for (let i = 0; i < this.#filled; i++) {
        const entry = this.#entries[i]!;
        this.read[entry] = EMPTY;
        this.write[entry] = EMPTY;
      }
    }
    this.#filled = 0;
    this.flushCode();
  }

  flushCode(): void {
    if (!this.#hasCode) return;
    this.#codeTags.fill(EMPTY);
    this.#codePages.fill(undefined);
    this.#hasCode = false;
  }

  /** Makes writes to a frame take the slow path, because code was decoded from it. */
  forbidWrites(frame: number): void {
    for (let entry = 0; entry < this.write.length; entry += WORDS) {
      if (this.write[entry + 2] === frame) this.write[entry] = EMPTY;
    }
  }

  addRead(lo: number, hi: number, frame: number): void {
    this.#add(this.read, lo, hi, frame);
  }

  addWrite(lo: number, hi: number, frame: number): void {
    this.#add(this.write, lo, hi, frame);
  }

  code(lo: number, hi: number): P | undefined {
    const entry = (lo >>> 12) & (CODE_ENTRIES - 1);
    const tags = this.#codeTags;
    return tags[2 * entry] === (lo & ~0xfff) && tags[2 * entry + 1] === hi
      ? this.#codePages[entry]
      : undefined;
  }

  addCode(lo: number, hi: number, page: P): void {
    const entry = (lo >>> 12) & (CODE_ENTRIES - 1);
    this.#codeTags[2 * entry] = lo & ~0xfff;
    this.#codeTags[2 * entry + 1] = hi;
    this.#codePages[entry] = page;
    this.#hasCode = true;
  }

  #add(table: Int32Array, lo: number, hi: number, frame: number): void {
    const entry = (lo >>> TLB_SHIFT) & TLB_MASK;
    table[entry] = lo & ~0xfff;
    table[entry + 1] = hi;
    table[entry + 2] = frame;
    if (this.#filled < REMEMBERED) this.#entries[this.#filled++] = entry;
    else this.#filled = REMEMBERED + 1;
  }
}

import { type Awaitable, repeat, then } from '../../awaitable.ts';
import { type Gfn, type Gpa, gfnOf, PAGE_SIZE } from '../address.ts';
import { copyBytes } from '../copy.ts';
import type { MemoryRegion, PhysicalMemory } from '../memory.ts';

/** Longer reads go past the cache: they gain nothing from it and would push everything else out. */
const LONGEST_CACHED = 4 * PAGE_SIZE;

export interface CacheOptions {
  /** How many pages to keep, 4 KiB each. */
  readonly pages: number;
}

/** A page that is kept. */
interface Slot {
  gfn: Gfn;
  bytes: Uint8Array;
  /** Read again since it was kept, or since the clock hand was here: a page read once goes first. */
  used: boolean;
}

/**
 * Memory whose pages are kept once they were read.
 *
 * **Only while the machine is stopped**: it does not see what the guest, a device or another tool writes. Call
 * `invalidate` before the machine goes on. Writes through it are seen.
 */
export class CachedMemory implements PhysicalMemory {
  readonly view?: PhysicalMemory['view'];
  readonly #memory: PhysicalMemory;
  readonly #limit: number;
  readonly #slots: Slot[] = [];
  readonly #byGfn = new Map<Gfn, Slot>();
  #hand = 0;
  /** A page's worth of bytes that nobody uses. */
  #spare: Uint8Array | undefined;
  /** Counts what makes pages that are being read right now too old to be kept. */
  #generation = 0;

  constructor(memory: PhysicalMemory, { pages }: CacheOptions) {
    this.#memory = memory;
    this.#limit = Math.max(1, pages);
    if (memory.view) this.view = (gpa, size) => memory.view!(gpa, size);
  }

  get regions(): readonly MemoryRegion[] {
    return this.#memory.regions;
  }

  read(gpa: Gpa, into: Uint8Array): Awaitable<boolean> {
    const { length } = into;
    if (length > LONGEST_CACHED || length === 0) return this.#memory.read(gpa, into);
    const gfn = gfnOf(gpa);
    const offset = gpa - gfn * PAGE_SIZE;
    if (offset + length <= PAGE_SIZE) return this.#readPage(gfn, offset, into, 0, length);
    let at = 0;
    return repeat<boolean>(() => {
      if (at === length) return true;
      const start = at;
      const page = gfnOf(gpa + start);
      const from = gpa + start - page * PAGE_SIZE;
      at = Math.min(length, start + PAGE_SIZE - from);
      return then(this.#readPage(page, from, into, start, at - start), (done) => (done ? undefined : false));
    });
  }

  write(gpa: Gpa, from: Uint8Array): Awaitable<boolean> {
    this.#drop(gpa, from.length);
    return then(this.#memory.write(gpa, from), (done) => {
      // What was read while the write was under way may be from before it.
      this.#drop(gpa, from.length);
      return done;
    });
  }

  /** Forgets every page. To be called before the machine runs, and after anything else changed its memory. */
  invalidate(): void {
    this.#generation++;
    this.#byGfn.clear();
  }

  /** Copies bytes of one page to `into`, from the cache or through it. */
  #readPage(gfn: Gfn, offset: number, into: Uint8Array, start: number, length: number): Awaitable<boolean> {
    const slot = this.#byGfn.get(gfn);
    if (slot !== undefined) {
      slot.used = true;
      copyBytes(slot.bytes, offset, into, start, length);
      return true;
    }
    const bytes = this.#spare ?? new Uint8Array(PAGE_SIZE);
    this.#spare = undefined;
    const generation = this.#generation;
    return then(this.#memory.read(gfn * PAGE_SIZE, bytes), (backed) => {
      if (backed) copyBytes(bytes, offset, into, start, length);
      if (backed && generation === this.#generation && !this.#byGfn.has(gfn)) this.#keep(gfn, bytes);
      else this.#spare = bytes;
      return backed;
    });
  }

  #keep(gfn: Gfn, bytes: Uint8Array): void {
    let slot: Slot;
    if (this.#slots.length < this.#limit) {
      slot = { gfn, bytes, used: false };
      this.#slots.push(slot);
    } else {
      slot = this.#victim();
      if (this.#byGfn.get(slot.gfn) === slot) this.#byGfn.delete(slot.gfn);
      this.#spare = slot.bytes;
      slot.gfn = gfn;
      slot.bytes = bytes;
      slot.used = false;
    }
    this.#byGfn.set(gfn, slot);
  }

  /** The first page, from the clock hand on, that is not in use or is forgotten. */
  #victim(): Slot {
    for (;;) {
      const slot = this.#slots[this.#hand]!;
      this.#hand = (this.#hand + 1) % this.#slots.length;
      if (!slot.used || this.#byGfn.get(slot.gfn) !== slot) return slot;
      slot.used = false;
    }
  }

  #drop(gpa: Gpa, length: number): void {
    this.#generation++;
    for (let gfn = gfnOf(gpa); gfn * PAGE_SIZE < gpa + length; gfn++) this.#byGfn.delete(gfn);
  }
}

/** `memory` with a page cache before it. **Only while the machine is stopped**; see {@link CachedMemory}. */
export function cached(memory: PhysicalMemory, options: CacheOptions): CachedMemory {
  return new CachedMemory(memory, options);
}

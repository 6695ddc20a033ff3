import { getS32, getU32, getU64 } from '../abi/bytes.ts';
import { type Awaitable, then } from '../awaitable.ts';
import { KvmiError } from '../error.ts';
import { type Gpa, type Gva, PAGE_SIZE, type Paging, type PhysicalMemory, walk } from '../machine/index.ts';
import { textOf } from './text.ts';
import { type Walk, wait } from './walk.ts';

/** Guest memory that a pointer leads to and that is not there. Costs no stack trace: hostile guests cause many. */
export class UnreadableError extends KvmiError {
  constructor(gva: Gva, size: number) {
    const { stackTraceLimit } = Error;
    Error.stackTraceLimit = 0;
    super('E_GUEST_MEMORY', `${size} bytes at 0x${BigInt.asUintN(64, gva).toString(16)} are not in memory`, {
      data: { gva, size },
    });
    Error.stackTraceLimit = stackTraceLimit;
  }
}

const PAGE_MASK = BigInt(PAGE_SIZE - 1);
/** 64 MiB. */
const MAX_PAGES = 16384;
const LARGE_PAGE = 2 ** 21;
const PAGES_PER_LARGE = LARGE_PAGE / PAGE_SIZE;
/** No structure and no text that is wanted is larger. */
const MAX_READ = 64 << 20;
const SLAB = 64 * PAGE_SIZE;

function pageNumber(gva: Gva): number {
  return Number(BigInt.asUintN(64, gva) >> 12n);
}

/**
 * One virtual address space. Each page is copied once and then stays as it was: what is checked is what is used,
 * whatever the guest does meanwhile. A space is made for one question and thrown away.
 */
export class Space {
  readonly memory: PhysicalMemory;
  readonly paging: Paging;
  readonly #pages = new Map<number, Uint8Array | null>();
  /** Where the 2 MiB around an address start, for those that are mapped in one piece. */
  readonly #large = new Map<number, Gpa>();
  #slab = new ArrayBuffer(0);
  #slabUsed = SLAB;

  constructor(memory: PhysicalMemory, paging: Paging) {
    this.memory = memory;
    this.paging = paging;
  }

  /** A copy of the bytes. Throws an {@link UnreadableError} when they are not all there. */
  *read(gva: Gva, size: number): Walk<Uint8Array> {
    if (size > MAX_READ) throw new UnreadableError(gva, size);
    const first = pageNumber(gva);
    const offset = Number(gva & PAGE_MASK);
    if (offset + size <= PAGE_SIZE) {
      const page = this.#pages.get(first) ?? (yield* wait(this.#load(first)));
      if (page === null) throw new UnreadableError(gva, size);
      return page.slice(offset, offset + size);
    }
    const into = new Uint8Array(size);
    for (let at = 0, number = first; at < size; number++) {
      const page = this.#pages.get(number) ?? (yield* wait(this.#load(number)));
      if (page === null) throw new UnreadableError(gva, size);
      const start = at === 0 ? offset : 0;
      const length = Math.min(size - at, PAGE_SIZE - start);
      into.set(length === PAGE_SIZE ? page : page.subarray(start, start + length), at);
      at += length;
    }
    return into;
  }

  *u64(gva: Gva): Walk<bigint> {
    const page = this.#at(gva, 8);
    if (page !== undefined) return getU64(page, Number(gva & PAGE_MASK));
    return getU64(yield* this.read(gva, 8), 0);
  }

  *u32(gva: Gva): Walk<number> {
    const page = this.#at(gva, 4);
    if (page !== undefined) return getU32(page, Number(gva & PAGE_MASK));
    return getU32(yield* this.read(gva, 4), 0);
  }

  *s32(gva: Gva): Walk<number> {
    return getS32(yield* this.read(gva, 4), 0);
  }

  /** The bytes up to a zero byte, `limit` or the end of what is readable. Throws when not even the first one is. */
  *bytesUntilZero(gva: Gva, limit = 4096): Walk<Uint8Array> {
    const parts: Uint8Array[] = [];
    for (let at = 0; at < limit; ) {
      const from = gva + BigInt(at);
      const size = Math.min(limit - at, PAGE_SIZE - Number(from & PAGE_MASK));
      const number = pageNumber(from);
      const page = this.#pages.get(number) ?? (yield* wait(this.#load(number)));
      if (page === null) {
        if (at === 0) throw new UnreadableError(gva, 1);
        break;
      }
      const start = Number(from & PAGE_MASK);
      const bytes = page.subarray(start, start + size);
      const zero = bytes.indexOf(0);
      parts.push(zero < 0 ? bytes : bytes.subarray(0, zero));
      if (zero >= 0) break;
      at += size;
    }
    return parts.length === 1 ? parts[0]! : Buffer.concat(parts);
  }

  /** A C string, decoded. */
  *string(gva: Gva, limit?: number): Walk<string> {
    return textOf(yield* this.bytesUntilZero(gva, limit));
  }

  #at(gva: Gva, size: number): Uint8Array | undefined {
    if (Number(gva & PAGE_MASK) + size > PAGE_SIZE) return undefined;
    return this.#pages.get(pageNumber(gva)) ?? undefined;
  }

  #load(number: number): Awaitable<Uint8Array | null> {
    if (this.#pages.get(number) === null) return null;
    return then(this.#locate(number), (gpa) => {
      if (gpa === undefined) return this.#keep(number, null);
      const page = this.#newPage();
      return then(this.memory.read(gpa, page), (backed) => this.#keep(number, backed ? page : null));
    });
  }

  /** Pages are cut from larger pieces: thousands of small arrays would keep the garbage collector busy. */
  #newPage(): Uint8Array {
    if (this.#slabUsed === SLAB) {
      this.#slab = Buffer.allocUnsafeSlow(SLAB).buffer;
      this.#slabUsed = 0;
    }
    const page = new Uint8Array(this.#slab, this.#slabUsed, PAGE_SIZE);
    this.#slabUsed += PAGE_SIZE;
    return page;
  }

  #keep(number: number, page: Uint8Array | null): Uint8Array | null {
    if (this.#pages.size >= MAX_PAGES) this.#pages.clear();
    this.#pages.set(number, page);
    return page;
  }

  #locate(number: number): Awaitable<Gpa | undefined> {
    const block = Math.floor(number / PAGES_PER_LARGE);
    const known = this.#large.get(block);
    if (known !== undefined) return known + (number % PAGES_PER_LARGE) * PAGE_SIZE;
    return then(walk(this.memory, this.paging, BigInt(number) << 12n), ({ gpa, pageSize }) => {
      if (gpa === undefined) return undefined;
      if (pageSize >= LARGE_PAGE) this.#large.set(block, gpa - (gpa % LARGE_PAGE));
      return gpa;
    });
  }
}

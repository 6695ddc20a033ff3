import { getS32 } from '../abi/bytes.ts';
import { type Awaitable, repeat, then } from '../awaitable.ts';
import { type Gpa, type Gva, PAGE_SHIFT, PAGE_SIZE } from './address.ts';
import type { PhysicalMemory } from './memory.ts';
import {
  ALL_RIGHTS,
  ENTRY_PRESENT,
  hasReservedBits,
  isLeaf,
  type Level,
  LINEAR_LIMIT_32,
  leafAddress,
  PAGE_FORMATS,
  type PageFormat,
  RIGHT_EXECUTE,
  RIGHT_USER,
  RIGHT_WRITE,
  rightsBelow,
  tableAddress,
} from './page-format.ts';
import type { Paging } from './paging.ts';

/** One page of an address space, of whatever size, with the rights of all levels together. */
export interface LeafMapping {
  readonly gva: Gva;
  readonly gpa: Gpa;
  /** In bytes: 4 KiB, 2 MiB, 4 MiB or 1 GiB; 4 GiB without paging. */
  readonly size: number;
  readonly writable: boolean;
  readonly user: boolean;
  readonly executable: boolean;
}

/** Which mappings are wanted; a right that is left out does not matter. */
export interface LeafFilter {
  readonly writable?: boolean;
  readonly user?: boolean;
  readonly executable?: boolean;
  /** Only pages that reach beyond this address … */
  readonly from?: Gva;
  /** … and start before this one. */
  readonly to?: Gva;
  /** How many mappings to collect at most. */
  readonly limit: number;
  /** How many tables to read at most, 65536 (256 MiB of them) unless told: page tables may be endless. */
  readonly tables?: number;
}

export interface LeafMappings {
  /** By ascending address. */
  readonly mappings: readonly LeafMapping[];
  /** Tables read. */
  readonly tables: number;
  /** Tables that lie where there is no memory; what they map is missing. */
  readonly unreadable: number;
  /** What ended the search before its time, and where to go on (`from`). */
  readonly cut: { readonly by: 'limit' | 'tables'; readonly gva: Gva } | undefined;
}

const DEFAULT_TABLES = 65536;
/** One more than the highest page number. Upper-half addresses end there, whatever their width. */
const PAGE_NUMBERS = 2 ** (64 - PAGE_SHIFT);

/** A table on the way down from the top. */
class Frame {
  readonly bytes = new Uint8Array(PAGE_SIZE);
  next = 0;
  gpa: Gpa = 0;
  /** The first page that it maps, as a number. */
  page = 0;
  /** What the levels above it allow. */
  rights = ALL_RIGHTS;
}

/** A depth-first search of a tree of tables, which stops whenever it needs to read one. */
class Search {
  readonly #format: PageFormat;
  readonly #filter: LeafFilter;
  readonly #nx: boolean;
  readonly #fromPage: number;
  readonly #toPage: number;
  /** Rights that a mapping must have, and must not have. */
  readonly #required: number;
  readonly #forbidden: number;
  readonly #frames: readonly Frame[];
  readonly #mappings: LeafMapping[] = [];
  #depth = 0;
  #tables = 0;
  #unreadable = 0;

  constructor({ mode, root, nx }: Paging, filter: LeafFilter) {
    this.#format = PAGE_FORMATS[mode];
    this.#filter = filter;
    this.#nx = nx;
    this.#fromPage = Number((filter.from ?? 0n) >> BigInt(PAGE_SHIFT));
    this.#toPage = Number(((filter.to ?? 1n << 64n) + BigInt(PAGE_SIZE - 1)) >> BigInt(PAGE_SHIFT));
    this.#required = rightsThatAre(true, filter);
    this.#forbidden = rightsThatAre(false, filter);
    this.#frames = this.#format.levels.map(() => new Frame());
    const top = this.#frames[0];
    if (top !== undefined) top.gpa = root;
  }

  /** Reads the table at the present depth and goes on to the next table, or to the end. */
  step(memory: PhysicalMemory): Awaitable<LeafMappings | undefined> {
    const frame = this.#frames[this.#depth];
    if (frame === undefined) return this.#withoutPaging();
    if (this.#tables >= (this.#filter.tables ?? DEFAULT_TABLES)) return this.#result('tables', frame.page);
    this.#tables++;
    frame.next = 0;
    const size = (this.#format.levels[this.#depth]!.indexMask + 1) * this.#format.entrySize;
    const into = size === PAGE_SIZE ? frame.bytes : frame.bytes.subarray(0, size);
    return then(memory.read(frame.gpa, into), (backed) => this.#scan(backed));
  }

  #scan(backed: boolean): LeafMappings | undefined {
    if (!backed) {
      this.#unreadable++;
      this.#depth--;
    }
    const { levels, entrySize } = this.#format;
    while (this.#depth >= 0) {
      const frame = this.#frames[this.#depth]!;
      const level = levels[this.#depth]!;
      if (frame.next > level.indexMask) {
        this.#depth--;
        continue;
      }
      const index = frame.next++;
      const low = getS32(frame.bytes, index * entrySize);
      const high = entrySize === 8 ? getS32(frame.bytes, index * 8 + 4) : 0;
      if ((low & ENTRY_PRESENT) === 0 || hasReservedBits(level, low, high, this.#nx)) continue;
      const page = this.#pageOf(frame, level, index);
      if (!this.#isInRange(page, level.size)) continue;
      const rights = rightsBelow(frame.rights, level, low, high);
      // A right that an upper level takes away does not come back further down.
      if ((rights & this.#required) !== this.#required) continue;
      if (!isLeaf(level, low)) {
        this.#descend(tableAddress(low, high), page, rights);
        return undefined;
      }
      if ((rights & this.#forbidden) !== 0) continue;
      if (this.#mappings.length >= this.#filter.limit) return this.#result('limit', page);
      this.#add(page, leafAddress(level, low, high), level.size, rights);
    }
    return this.#result();
  }

  #pageOf(frame: Frame, level: Level, index: number): number {
    const pages = level.size / PAGE_SIZE;
    const isUpper = this.#format.twoHalves && this.#depth === 0 && index > level.indexMask >>> 1;
    return isUpper ? PAGE_NUMBERS - (level.indexMask + 1 - index) * pages : frame.page + index * pages;
  }

  #isInRange(page: number, size: number): boolean {
    return page < this.#toPage && page + size / PAGE_SIZE > this.#fromPage;
  }

  #descend(table: Gpa, page: number, rights: number): void {
    const frame = this.#frames[++this.#depth]!;
    frame.gpa = table;
    frame.page = page;
    frame.rights = rights;
  }

  #add(page: number, gpa: Gpa, size: number, rights: number): void {
    this.#mappings.push({
      gva: gvaOf(page),
      gpa,
      size,
      writable: (rights & RIGHT_WRITE) !== 0,
      user: (rights & RIGHT_USER) !== 0,
      executable: (rights & RIGHT_EXECUTE) !== 0,
    });
  }

  #withoutPaging(): LeafMappings {
    const wanted = this.#forbidden === 0 && this.#isInRange(0, LINEAR_LIMIT_32);
    if (wanted && this.#filter.limit === 0) return this.#result('limit', 0);
    if (wanted) this.#add(0, 0, LINEAR_LIMIT_32, ALL_RIGHTS);
    return this.#result();
  }

  #result(by?: 'limit' | 'tables', page = 0): LeafMappings {
    return {
      mappings: this.#mappings,
      tables: this.#tables,
      unreadable: this.#unreadable,
      cut: by && { by, gva: gvaOf(page) },
    };
  }
}

function gvaOf(page: number): Gva {
  return BigInt(page) << BigInt(PAGE_SHIFT);
}

function rightsThatAre(value: boolean, { writable, user, executable }: LeafFilter): number {
  return (
    (writable === value ? RIGHT_WRITE : 0) |
    (user === value ? RIGHT_USER : 0) |
    (executable === value ? RIGHT_EXECUTE : 0)
  );
}

/**
 * All pages that an address space maps, by ascending address, as far as `filter` wants them. Tables below an entry
 * that takes away a right asked for, or outside the range, are not read.
 *
 * Tables may name themselves, deliberately (recursive mapping) or to make the search endless: the depth is that of
 * the paging mode, and `limit` and `tables` bound the rest; `cut` says when they did.
 */
export function leafMappings(
  memory: PhysicalMemory,
  paging: Paging,
  filter: LeafFilter,
): Awaitable<LeafMappings> {
  const search = new Search(paging, filter);
  return repeat(() => search.step(memory));
}

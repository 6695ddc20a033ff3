import { getU64 } from '../abi/bytes.ts';
import { type Awaitable, isPending, then } from '../awaitable.ts';
import { type Gpa, type Gva, PAGE_SIZE } from './address.ts';
import { highHalf, lowHalf } from './gva-halves.ts';
import type { PhysicalMemory } from './memory.ts';
import {
  ALL_RIGHTS,
  ENTRY_PRESENT,
  entryIndex,
  hasReservedBits,
  isLeaf,
  LINEAR_LIMIT_32,
  leafAddress,
  PAGE_FORMATS,
  RIGHT_EXECUTE,
  RIGHT_USER,
  RIGHT_WRITE,
  rightsBelow,
  tableAddress,
} from './page-format.ts';
import { type Paging, pagingOf } from './paging.ts';

/**
 * Why an address has no translation: it is not canonical (or above 4 GiB outside long mode), an entry is not
 * present, an entry has reserved bits set, or a table lies where there is no memory.
 */
export type TranslationFault = 'not-canonical' | 'not-present' | 'reserved-bits' | 'not-backed';

/** One page-table entry that a walk went through. */
export interface PageTableEntry {
  /** Where the entry is. */
  readonly gpa: Gpa;
  readonly value: bigint;
  /** 5 for PML5 … 1 for the page table. */
  readonly level: number;
}

/** A walk with all that was seen on the way. */
export interface PageWalk {
  /** Undefined when there is no translation; `fault` says why. */
  readonly gpa: Gpa | undefined;
  readonly fault: TranslationFault | undefined;
  /** Size in bytes of the page, or of what the last entry seen would map. 4 GiB without paging. */
  readonly pageSize: number;
  /** Rights of all levels together, as far as the walk came. SMEP, SMAP and protection keys are not applied. */
  readonly writable: boolean;
  readonly user: boolean;
  readonly executable: boolean;
  /** From the top. */
  readonly entries: readonly PageTableEntry[];
}

/** Instead of the address of the next entry: there is none. */
const END = -1;

/**
 * A page walk that can stop at a read which is still to come and go on later. Its fields are the result;
 * the object is used again for other walks.
 */
class Walker {
  gpa: Gpa = 0;
  fault: TranslationFault | undefined;
  pageSize = 0;
  /** What all levels so far allow. */
  rights = ALL_RIGHTS;
  /** Where to record entries, for those who want to see them. */
  trace: PageTableEntry[] | undefined;

  #format = PAGE_FORMATS.none;
  #nx = false;
  #low = 0;
  #high = 0;
  #depth = 0;
  readonly #entry = new Uint8Array(8);
  readonly #halves = new Int32Array(this.#entry.buffer);
  readonly #entryLow = this.#entry.subarray(0, 4);
  /** What a read fills: all of `#entry`, or the low half while the high one stays 0. */
  #into = this.#entry;

  /** Walks to the end. The fields are the result once the answer is there. */
  run(memory: PhysicalMemory, paging: Paging, gva: Gva): Awaitable<this> {
    let at = this.#start(paging, gva);
    while (at !== END) {
      const backed = memory.read(at, this.#into);
      if (isPending(backed)) return this.#runLater(memory, at, backed);
      at = this.#take(at, backed);
    }
    return this;
  }

  async #runLater(memory: PhysicalMemory, first: Gpa, pending: PromiseLike<boolean>): Promise<this> {
    let at = this.#take(first, await pending);
    while (at !== END) at = this.#take(at, await memory.read(at, this.#into));
    return this;
  }

  /** Where the first entry is, or END. */
  #start(paging: Paging, gva: Gva): Gpa | typeof END {
    this.#low = lowHalf(gva);
    this.#high = highHalf(gva);
    this.#format = PAGE_FORMATS[paging.mode];
    this.#nx = paging.nx;
    this.#depth = 0;
    this.fault = undefined;
    this.rights = ALL_RIGHTS;
    this.pageSize = LINEAR_LIMIT_32;
    const { levels, entrySize, canonicalShift, twoHalves } = this.#format;
    const top = this.#high >> canonicalShift;
    if (top !== 0 && !(top === -1 && twoHalves)) return this.#end('not-canonical');
    if (levels.length === 0) {
      this.gpa = this.#low >>> 0;
      return END;
    }
    this.#entry.fill(0);
    this.#into = entrySize === 8 ? this.#entry : this.#entryLow;
    return this.#enter(paging.root);
  }

  /** Where the entry of the table at the present depth is. */
  #enter(table: Gpa): Gpa {
    const level = this.#format.levels[this.#depth]!;
    this.pageSize = level.size;
    return table + entryIndex(level, this.#low, this.#high) * this.#format.entrySize;
  }

  /** Uses the entry that was read from `at`. Gives where the next one is, or END. */
  #take(at: Gpa, backed: boolean): Gpa | typeof END {
    if (!backed) return this.#end('not-backed');
    const low = this.#halves[0]!;
    const high = this.#halves[1]!;
    const level = this.#format.levels[this.#depth]!;
    this.trace?.push({
      gpa: at,
      value: getU64(this.#entry, 0),
      level: this.#format.levels.length - this.#depth,
    });
    if ((low & ENTRY_PRESENT) === 0) return this.#end('not-present');
    if (hasReservedBits(level, low, high, this.#nx)) return this.#end('reserved-bits');
    this.rights = rightsBelow(this.rights, level, low, high);
    if (isLeaf(level, low)) {
      this.gpa = leafAddress(level, low, high) + (this.#low & (level.size - 1));
      return END;
    }
    this.#depth++;
    return this.#enter(tableAddress(low, high));
  }

  #end(fault: TranslationFault): typeof END {
    this.fault = fault;
    return END;
  }
}

/** A walker that is not in use. Walks that overlap (memory that answers later) get one of their own. */
let idle: Walker | undefined;

function startWalk(memory: PhysicalMemory, paging: Paging, gva: Gva): Awaitable<Walker> {
  const walker = idle ?? new Walker();
  idle = undefined;
  return walker.run(memory, paging, gva);
}

/**
 * The guest-physical address behind `gva`, as a supervisor's access would find it (KVMI_VCPU_TRANSLATE_GVA): any
 * present mapping will do, whatever its rights. Undefined when there is none, also for an address that is not
 * canonical. The address found need not have memory behind it (devices).
 *
 * `paging` may be a 536-byte state block. Synchronous when the memory is.
 */
export function translate(
  memory: PhysicalMemory,
  paging: Paging | Uint8Array,
  gva: Gva,
): Awaitable<Gpa | undefined> {
  return then(
    startWalk(memory, paging instanceof Uint8Array ? pagingOf(paging) : paging, gva),
    takeTranslation,
  );
}

function takeTranslation(walker: Walker): Gpa | undefined {
  const gpa = walker.fault === undefined ? walker.gpa : undefined;
  idle = walker;
  return gpa;
}

/** Where the 4 KiB around an address are, and how large the page is that they belong to. */
export interface PageLocation {
  /** Page-aligned. */
  readonly gpa: Gpa;
  readonly pageSize: number;
}

/** Translates like {@link translate}, for the whole page around `gva`. */
export function locatePage(
  memory: PhysicalMemory,
  paging: Paging,
  gva: Gva,
): Awaitable<PageLocation | undefined> {
  return then(startWalk(memory, paging, gva), takeLocation);
}

function takeLocation(walker: Walker): PageLocation | undefined {
  const { fault, gpa, pageSize } = walker;
  idle = walker;
  return fault === undefined ? { gpa: gpa - (gpa % PAGE_SIZE), pageSize } : undefined;
}

/** Translates like {@link translate} and tells everything that it saw. */
export function walk(memory: PhysicalMemory, paging: Paging, gva: Gva): Awaitable<PageWalk> {
  const walker = new Walker();
  const entries: PageTableEntry[] = [];
  walker.trace = entries;
  return then(walker.run(memory, paging, gva), ({ gpa, fault, pageSize, rights }) => ({
    gpa: fault === undefined ? gpa : undefined,
    fault,
    pageSize,
    writable: (rights & RIGHT_WRITE) !== 0,
    user: (rights & RIGHT_USER) !== 0,
    executable: (rights & RIGHT_EXECUTE) !== 0,
    entries,
  }));
}

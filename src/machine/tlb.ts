import { type Awaitable, isPending, then } from '../awaitable.ts';
import { type Gpa, type Gva, PAGE_SIZE } from './address.ts';
import { highHalf, lowHalf } from './gva-halves.ts';
import type { PhysicalMemory } from './memory.ts';
import { locatePage, type PageLocation } from './page-walk.ts';
import type { Paging, PagingMode } from './paging.ts';

/** A translation that is kept: the page `number` of the address space `space`. */
interface Entry extends PageLocation {
  readonly space: number;
  readonly number: number;
}

const MODE_NUMBERS: Readonly<Record<PagingMode, number>> = {
  none: 0,
  '32-bit': 2,
  '32-bit-pse': 4,
  pae: 6,
  '4-level': 8,
  '5-level': 10,
};

/** All of a Paging in one number: a root is a multiple of 32, which leaves room for the rest. */
function spaceOf({ mode, root, nx }: Paging): number {
  return root + MODE_NUMBERS[mode] + (nx ? 1 : 0);
}

/**
 * Keeps translations of one memory, for any number of address spaces.
 *
 * It does not see the guest change its page tables. Use it while the machine is stopped and {@link flush} it before
 * the machine goes on; or, on a running machine, where an answer that was right a moment ago will do.
 */
export class Tlb {
  readonly #memory: PhysicalMemory;
  readonly #entries: (Entry | undefined)[];
  readonly #mask: number;
  #generation = 0;

  /** `entries`: how many pages to remember, rounded up to a power of two. */
  constructor(memory: PhysicalMemory, entries = 1024) {
    const size = 2 ** Math.ceil(Math.log2(Math.max(1, entries)));
    this.#memory = memory;
    this.#entries = new Array(size).fill(undefined);
    this.#mask = size - 1;
  }

  /** As the function `translate`. */
  translate(paging: Paging, gva: Gva): Awaitable<Gpa | undefined> {
    const page = this.locate(paging, gva);
    const offset = lowHalf(gva) & (PAGE_SIZE - 1);
    return isPending(page) ? page.then((found) => found && found.gpa + offset) : page && page.gpa + offset;
  }

  /** As the function `locatePage`. */
  locate(paging: Paging, gva: Gva): Awaitable<PageLocation | undefined> {
    const low = lowHalf(gva);
    const high = highHalf(gva);
    const space = spaceOf(paging);
    const number = (high >>> 0) * 0x10_0000 + (low >>> 12);
    const slot = ((low >>> 12) ^ high ^ (space / PAGE_SIZE)) & this.#mask;
    const entry = this.#entries[slot];
    if (entry !== undefined && entry.number === number && entry.space === space) return entry;
    const generation = this.#generation;
    return then(locatePage(this.#memory, paging, gva), (page) => {
      if (page !== undefined && generation === this.#generation) {
        this.#entries[slot] = { space, number, gpa: page.gpa, pageSize: page.pageSize };
      }
      return page;
    });
  }

  /** Forgets everything, also what is being looked up just now. */
  flush(): void {
    this.#generation++;
    this.#entries.fill(undefined);
  }
}

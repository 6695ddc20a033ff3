import { ERRNO } from '../../../abi/errno.ts';
import { KVM_MEM } from '../../../abi/kvm.ts';
import { KvmiError } from '../../../error.ts';
import { PAGE_SIZE } from '../../../machine/address.ts';
import type { Memslot } from './memslots.ts';
import { type Backing, backingsAt, type Range } from './slot-candidates.ts';
import type { SlotRequest } from './slot-request.ts';

/*
 * Finds the memory slots of a VM by asking the kernel about guesses, where it tells nothing else.
 *
 * Only KVM_SET_USER_MEMORY_REGION knows slots, and it changes what it does not refuse. What it checks, in this order
 * (kvm_set_memory_region()), makes questions of it that are refused whatever the answer is:
 *
 * - A number in use, with another address in the VMM, size or read-only flag than the slot has: EINVAL.
 * - Else, when the address in the guest overlaps another slot: EEXIST.
 * - Else the slot is moved, or made.
 *
 * So every guess about a slot is made at an address that another one occupies: one that has been found; before that a
 * slot of our own, the marker, which is made and deleted within one series of calls; or, to find out which slot starts
 * with an occupied page, that page.
 *
 * No vCPU may be in the guest and no thread of the VMM may run meanwhile. A series that was begun has to be completed.
 */

/** One question to the kernel. */
export type OracleCall =
  | ({ readonly ask: 'set' } & SlotRequest)
  /** KVM_CLEAR_DIRTY_LOG from a page on that no slot has. */
  | { readonly ask: 'dirty-log'; readonly slot: number };

/** Makes calls one after another, without coming back in between; gives 0 or the error number of each. */
export type Ask = (calls: readonly OracleCall[]) => number[];

/** How many calls one series has at most. */
export const SERIES_LIMIT = 30;

const { ENOENT, EEXIST, EINVAL } = ERRNO;
/** Slots of VMMs are numbered from 0; the highest number that every kernel knows is 508. */
const SEARCHED_SLOTS = 503;
const MARKER_SLOTS = [506, 505, 504, 503];
/** Beyond what guests use, within what processors with 36 to 46 address bits have. */
const MARKER_ADDRESSES = [2 ** 38 - PAGE_SIZE, 2 ** 36 - PAGE_SIZE, 2 ** 40 - PAGE_SIZE, 2 ** 35 - PAGE_SIZE];
/** No process has memory there. The marker is never accessed. */
const MARKER_HVA = PAGE_SIZE;
const LARGEST_GAP = 2 ** 30;
/** Slots are looked for below this address. */
const SEARCH_END = 2 ** 37;

interface Found extends Backing {
  readonly slot: number;
  readonly readonly: boolean;
}

export class SlotOracle {
  readonly #ask: Ask;
  readonly #backings: (gpa: number) => Iterable<Backing>;
  readonly #logged = new Set<number>();
  #marker = { slot: -1, gpa: -1 };
  /** An address of a slot that has been found: guesses about others need no marker from then on. */
  #aim: number | undefined;

  /** @param mappings what the VMM has mapped. */
  constructor(ask: Ask, mappings: readonly Range[]) {
    this.#ask = ask;
    this.#backings = (gpa) => backingsAt(gpa, mappings);
  }

  /** The slots, in the order of their addresses. @throws KvmiError with code E_NO_MEMSLOTS. */
  find(): Memslot[] {
    this.#makeMarker();
    let gpa = this.#nextOccupied(0);
    if (gpa === undefined) return [];
    const pending = this.#usedSlots(gpa);
    this.#findLogged(pending);
    const known = new Map<number, Found>();
    const found: Memslot[] = [];
    while (pending.size > 0) {
      const slot: Memslot | undefined = gpa === undefined ? undefined : this.#slotAt(gpa, pending, known);
      if (!slot) throw notFound(found.length, pending.size, gpa);
      pending.delete(slot.slot);
      known.delete(slot.slot);
      found.push(slot);
      this.#aim ??= slot.gpa;
      gpa = pending.size > 0 ? this.#nextOccupied(slot.gpa + slot.size) : undefined;
    }
    return found;
  }

  /** Finds a number and an address for the marker that are free. Nothing is assumed about either. */
  #makeMarker(): void {
    const slot = MARKER_SLOTS.find((candidate) => this.#isUnused(candidate));
    const gpa = MARKER_ADDRESSES.find(
      (candidate) => slot !== undefined && this.#tryMaking(slot, candidate, PAGE_SIZE) === 0,
    );
    if (slot === undefined || gpa === undefined) {
      throw new KvmiError(
        'E_NO_MEMSLOTS',
        'the kernel refuses all questions about the memory slots of the VM',
        {
          hint: HINT,
        },
      );
    }
    this.#marker = { slot, gpa };
  }

  /** A slot where VMs have memory is refused for it, as long as its number is not used. */
  #isUnused(slot: number): boolean {
    const [made] = this.#ask([set(slot, 0, 0, LARGEST_GAP, MARKER_HVA)]);
    // This VM has none there.
    if (made === 0) this.#ask([remove(slot)]);
    return made === 0 || made === EEXIST;
  }

  /** Makes a slot with an unused number and deletes it again. What the kernel says to the first of it. */
  #tryMaking(slot: number, gpa: number, size: number): number {
    const [made, removed] = this.#ask([set(slot, 0, gpa, size, MARKER_HVA), remove(slot)]);
    if (made === 0 && removed !== 0) throw changing();
    return made!;
  }

  #flagsOf({ slot, readonly }: Found): number {
    return (readonly ? KVM_MEM.READONLY : 0) | (this.#logged.has(slot) ? KVM_MEM.LOG_DIRTY_PAGES : 0);
  }

  /** Which guesses are right, each made at an address of another slot. */
  #guess(guesses: readonly Found[], aim = this.#aim): boolean[] {
    const { slot, gpa } = this.#marker;
    const at = aim ?? gpa;
    const around = aim === undefined ? [set(slot, 0, gpa, PAGE_SIZE, MARKER_HVA), remove(slot)] : [];
    const limit = SERIES_LIMIT - around.length;
    const answers: number[] = [];
    for (let i = 0; i < guesses.length; i += limit) {
      const questions = guesses
        .slice(i, i + limit)
        .map((guess) => set(guess.slot, this.#flagsOf(guess), at, guess.size, guess.hva));
      const [first, last] = around;
      if (!first || !last) {
        answers.push(...this.#ask(questions));
        continue;
      }
      const [made, ...rest] = this.#ask([first, ...questions, last]);
      if (made !== 0 || rest.pop() !== 0) throw changing();
      answers.push(...rest);
    }
    if (answers.some((answer) => answer !== EEXIST && answer !== EINVAL)) throw changing();
    return answers.map((answer) => answer === EEXIST);
  }

  /**
   * The numbers that are in use: a guess that is certainly wrong is refused as such for those only. `occupied` is an
   * address of any slot.
   */
  #usedSlots(occupied: number): Set<number> {
    const guesses = Array.from({ length: SEARCHED_SLOTS }, (_, slot) => ({
      slot,
      hva: MARKER_HVA,
      size: PAGE_SIZE,
      readonly: false,
    }));
    const unused = this.#guess(guesses, occupied);
    return new Set(guesses.filter((_, i) => !unused[i]).map(({ slot }) => slot));
  }

  /** Notes which slots have their dirty pages logged: asking with another flag would end that. */
  #findLogged(slots: ReadonlySet<number>): void {
    for (const slot of slots) {
      const [answer] = this.#ask([{ ask: 'dirty-log', slot }]);
      if (answer === EINVAL) this.#logged.add(slot);
      else if (answer !== ENOENT) {
        throw new KvmiError(
          'E_NO_MEMSLOTS',
          'the kernel does not tell for which memory slots it logs writes',
          {
            hint: HINT,
          },
        );
      }
    }
  }

  /** Whether no slot has any page of a range: a slot of ours that would fill it can be made. */
  #isFree(gpa: number, size: number): boolean {
    const made = this.#tryMaking(this.#marker.slot, gpa, size);
    if (made !== 0 && made !== EEXIST) throw changing();
    return made === 0;
  }

  /** The first page from `at` on that a slot has. */
  #nextOccupied(at: number): number | undefined {
    let gpa = at;
    for (let size = LARGEST_GAP; size >= PAGE_SIZE; ) {
      if (gpa >= SEARCH_END) return undefined;
      if (this.#isFree(gpa, size)) gpa += size;
      else size /= 2;
    }
    return gpa;
  }

  /** The slot that starts at `gpa`, where one does. */
  #slotAt(gpa: number, pending: ReadonlySet<number>, known: Map<number, Found>): Memslot | undefined {
    for (const each of known.values()) if (this.#startsAt(each, gpa)) return { ...each, gpa };
    let guesses: Found[] = [];
    const matches = (): Found[] => {
      const right = this.#guess(guesses);
      const found = guesses.filter((_, i) => right[i]);
      guesses = [];
      for (const match of found) known.set(match.slot, match);
      return found;
    };
    for (const backing of this.#backings(gpa)) {
      for (const slot of pending) {
        if (known.has(slot)) continue;
        guesses.push({ ...backing, slot, readonly: false }, { ...backing, slot, readonly: true });
      }
      if (guesses.length < SERIES_LIMIT) continue;
      for (const match of matches()) if (this.#startsAt(match, gpa)) return { ...match, gpa };
    }
    for (const match of matches()) if (this.#startsAt(match, gpa)) return { ...match, gpa };
    return undefined;
  }

  /** Nothing changes when it does; otherwise the page is another slot's, and the kernel refuses to move it there. */
  #startsAt(slot: Found, gpa: number): boolean {
    const [answer] = this.#ask([set(slot.slot, this.#flagsOf(slot), gpa, slot.size, slot.hva)]);
    if (answer !== 0 && answer !== EEXIST) throw changing();
    return answer === 0;
  }
}

const HINT = 'With root, or CAP_BPF and CAP_PERFMON, and a kernel with BTF, nothing has to be guessed.';

function set(slot: number, flags: number, gpa: number, size: number, hva: number): OracleCall {
  return { ask: 'set', slot, flags, gpa, size, hva };
}

function remove(slot: number): OracleCall {
  return set(slot, 0, 0, 0, 0);
}

function changing(): KvmiError {
  return new KvmiError(
    'E_AGAIN',
    'the kernel answered questions about the memory slots of the VM in a way that none of them has',
    {
      hint: HINT,
    },
  );
}

function notFound(found: number, missing: number, gpa: number | undefined): KvmiError {
  const where =
    gpa === undefined ? 'beyond the addresses that are searched' : `the one at 0x${gpa.toString(16)}`;
  return new KvmiError(
    'E_NO_MEMSLOTS',
    `${missing} of the ${found + missing} memory slots of the VM could not be guessed: ${where}`,
    { hint: HINT },
  );
}

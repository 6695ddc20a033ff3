import { PAGE_SIZE } from '../../../machine/address.ts';
import type { Memslot } from './memslots.ts';
import type { SlotRequest } from './slot-request.ts';

/** A memory slot of which single pages can be taken away: what is left of it is in several slots meanwhile. */
export class SplitSlot {
  readonly original: SlotRequest;
  readonly pages = new Map<number, SlotRequest>();
  #parts: SlotRequest[];
  /** Numbers that it has had: after a change that was not completed there may still be slots of them. */
  readonly #spare: number[] = [];

  constructor({ slot, flags = 0, gpa, size, hva }: Memslot) {
    this.original = { slot, flags, gpa, size, hva };
    this.#parts = [this.original];
  }

  has(gpa: number): boolean {
    return gpa >= this.original.gpa && gpa < this.original.gpa + this.original.size;
  }

  /** The slot numbers that are its own. */
  get numbers(): number[] {
    return [...this.#parts, ...this.pages.values()].map(({ slot }) => slot).concat(this.#spare);
  }

  /** What takes a page out of it. `fresh` gives slot numbers that nobody uses. */
  cut(gpa: number, fresh: () => number): SlotRequest[] {
    const part = this.#parts.find((each) => gpa >= each.gpa && gpa < each.gpa + each.size)!;
    const end = gpa + PAGE_SIZE;
    const numbers = [part.slot];
    const next = (): number => numbers.pop() ?? this.#spare.pop() ?? fresh();
    const parts: SlotRequest[] = [];
    if (part.gpa < gpa) parts.push(this.#region(next(), part.gpa, gpa));
    if (end < part.gpa + part.size) parts.push(this.#region(next(), end, part.gpa + part.size));
    this.pages.set(gpa, this.#region(next(), gpa, end));
    this.#parts = this.#parts.filter((each) => each !== part).concat(parts);
    return [deletion(part.slot), ...parts];
  }

  /** What puts a page back for good; the page itself is a slot just now, or (`isOut`) is not. */
  heal(gpa: number, isOut: boolean): SlotRequest[] {
    const page = this.pages.get(gpa)!;
    this.pages.delete(gpa);
    const around = this.#parts.filter((each) => each.gpa + each.size === gpa || each.gpa === gpa + PAGE_SIZE);
    const all = [...around, page].sort((a, b) => a.gpa - b.gpa);
    const numbers = all.map(({ slot }) => slot);
    const slot = numbers.includes(this.original.slot) ? this.original.slot : (around[0]?.slot ?? page.slot);
    const last = all.at(-1)!;
    const whole = this.#region(slot, all[0]!.gpa, last.gpa + last.size);
    this.#parts = this.#parts.filter((each) => !around.includes(each)).concat(whole);
    this.#spare.push(...numbers.filter((number) => number !== slot));
    const deletions = (isOut ? around : all).map((each) => deletion(each.slot));
    return [...deletions, whole];
  }

  #region(slot: number, gpa: number, end: number): SlotRequest {
    const { flags, gpa: start, hva } = this.original;
    return { slot, flags, gpa, size: end - gpa, hva: hva + (gpa - start) };
  }
}

/** What deletes a slot. */
export function deletion(slot: number): SlotRequest {
  return { slot, flags: 0, gpa: 0, size: 0, hva: 0 };
}

/** What makes the slots of a VM what they were, whatever has been done of `cut` and `heal`: failing deletions are none. */
export function restoration(splits: readonly SplitSlot[]): SlotRequest[] {
  return [
    ...splits.flatMap((split) => [...new Set([split.original.slot, ...split.numbers])].map(deletion)),
    ...splits.map(({ original }) => original),
  ];
}

import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { KVM_MEM } from '../../../abi/kvm.ts';
import { SlotTable } from '../../../run/intercepted-slots.ts';
import type { Memslot } from './memslots.ts';
import type { SlotRequest } from './slot-request.ts';
import { restoration, SplitSlot } from './split-slot.ts';

const PAGE = 4096;
const FLAGS = KVM_MEM.READONLY | KVM_MEM.LOG_DIRTY_PAGES;
const SLOT: Memslot = {
  slot: 7,
  gpa: 16 * PAGE,
  size: 12 * PAGE,
  hva: 0x7f0000000000,
  readonly: false,
  flags: 0,
};
const NEIGHBOURS: readonly Memslot[] = [
  { slot: 0, gpa: 0, size: 16 * PAGE, hva: 0x7e0000000000, readonly: false, flags: 0 },
  { slot: 3, gpa: 28 * PAGE, size: PAGE, hva: 0x7d0000000000, readonly: true, flags: KVM_MEM.READONLY },
];

/** The slots of a VM as the kernel would have them. */
class Kernel {
  readonly #table = new SlotTable();
  constructor(slots: readonly Memslot[]) {
    for (const { readonly: _, flags = 0, ...slot } of slots) this.make([{ ...slot, flags }], true);
  }
  make(requests: readonly SlotRequest[], all: boolean): void {
    for (const request of requests) {
      const done = this.#table.apply(request, FLAGS);
      assert.ok(done || !all, `refused: ${JSON.stringify(request)}`);
    }
  }
  get slots(): Omit<Memslot, 'flags'>[] {
    return [...this.#table.slots].sort((a, b) => a.gpa - b.gpa);
  }
  /** Where each page is, by its number. */
  get pages(): Map<number, number> {
    return new Map(
      this.#table.slots.flatMap(({ gpa, size, hva }) =>
        Array.from({ length: size / PAGE }, (_, i) => [gpa / PAGE + i, hva + i * PAGE] as const),
      ),
    );
  }
}

const all = [...NEIGHBOURS, SLOT];
const steps = fc.array(fc.tuple(fc.integer({ min: 16, max: 27 }), fc.boolean()), { maxLength: 40 });

/** Takes pages away and puts them back in some order; `each` looks at it at every step, and ends it with false. */
function play(
  order: readonly (readonly [page: number, isOut: boolean])[],
  kernel: Kernel,
  each: (split: SplitSlot, away: ReadonlySet<number>, requests: readonly SlotRequest[]) => unknown,
): void {
  const split = new SplitSlot(SLOT);
  const away = new Set<number>();
  let next = 508;
  for (const [page, isOut] of order) {
    const gpa = page * PAGE;
    let requests: SlotRequest[];
    if (away.delete(page)) {
      if (!isOut) kernel.make([split.pages.get(gpa)!], true);
      requests = split.heal(gpa, isOut);
    } else {
      away.add(page);
      requests = split.cut(gpa, () => next--);
    }
    if (each(split, away, requests) === false) return;
  }
  for (const page of [...away]) {
    away.delete(page);
    if (each(split, away, split.heal(page * PAGE, true)) === false) return;
  }
}

describe('a slot that pages are taken out of', () => {
  it('has all pages but those, where they were, and in the end is what it was', () => {
    fc.assert(
      fc.property(steps, (order) => {
        const kernel = new Kernel(all);
        const before = new Kernel(all);
        play(order, kernel, (_, away, requests) => {
          kernel.make(requests, true);
          const expected = new Map([...before.pages].filter(([page]) => !away.has(page)));
          assert.deepEqual(
            [...kernel.pages].sort(([a], [b]) => a - b),
            [...expected].sort(([a], [b]) => a - b),
          );
        });
        assert.deepEqual(kernel.slots, before.slots);
      }),
    );
  });

  it('is what it was after its restoration, however much of a change was made', () => {
    fc.assert(
      fc.property(steps, fc.nat(), fc.nat(3), (order, at, made) => {
        const kernel = new Kernel(all);
        let restored = false;
        let step = 0;
        play(order, kernel, (split, _, requests) => {
          if (step++ !== at % (order.length + 1)) {
            kernel.make(requests, true);
            return true;
          }
          kernel.make(requests.slice(0, made), true);
          kernel.make(restoration([split]), false);
          restored = true;
          return false;
        });
        if (restored) assert.deepEqual(kernel.slots, new Kernel(all).slots);
      }),
    );
  });

  it('keeps its flags', () => {
    const split = new SplitSlot({ ...SLOT, readonly: true, flags: KVM_MEM.READONLY });
    const requests = [...split.cut(20 * PAGE, () => 500), ...split.heal(20 * PAGE, true)];
    for (const { size, flags } of requests) assert.equal(flags, size === 0 ? 0 : KVM_MEM.READONLY);
  });
});

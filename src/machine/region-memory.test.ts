import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { isPending } from '../awaitable.ts';
import { KvmiError } from '../error.ts';
import { type BackedRegion, bytesBackend, memoryEnd, RegionMemory, readExactly } from './index.ts';

const PAGE = 4096;

function region(gfn: number, pages: number, { readonly = false, later = false } = {}): BackedRegion {
  const bytes = Uint8Array.from({ length: pages * PAGE }, (_, i) => gfn * 31 + (i >> 12) * 7 + i);
  const backend = bytesBackend(bytes);
  if (!later) return { gpa: gfn * PAGE, size: pages * PAGE, readonly, backend };
  return {
    gpa: gfn * PAGE,
    size: pages * PAGE,
    readonly,
    backend: {
      read: async (offset, into) => backend.read(offset, into),
      write: async (offset, from) => backend.write!(offset, from),
    },
  };
}

/** Every byte by itself, in a map: what RegionMemory must be equal to. */
class Reference {
  readonly bytes = new Map<number, number>();
  readonly #readonly = new Set<number>();

  constructor(regions: readonly BackedRegion[]) {
    for (const { gpa, size, readonly, backend } of regions) {
      const copy = new Uint8Array(size);
      void backend.read(0, copy);
      for (let i = 0; i < size; i++) this.bytes.set(gpa + i, copy[i]!);
      if (readonly) for (let i = 0; i < size; i++) this.#readonly.add(gpa + i);
    }
  }

  read(gpa: number, length: number): Uint8Array | undefined {
    const values = Array.from({ length }, (_, i) => this.bytes.get(gpa + i));
    return values.includes(undefined) ? undefined : Uint8Array.from(values as number[]);
  }

  write(gpa: number, from: Uint8Array): boolean {
    for (let i = 0; i < from.length; i++) {
      if (!this.bytes.has(gpa + i) || this.#readonly.has(gpa + i)) return false;
    }
    from.forEach((byte, i) => {
      this.bytes.set(gpa + i, byte);
    });
    return true;
  }
}

const layout = fc
  .array(fc.record({ gap: fc.nat(1), pages: fc.integer({ min: 1, max: 2 }), readonly: fc.boolean() }), {
    maxLength: 6,
  })
  .map((rows) => {
    let gfn = 0;
    return rows.map(({ gap, pages, readonly }) => {
      const at = gfn + gap;
      gfn = at + pages;
      return { at, pages, readonly };
    });
  });

const access = fc.record({
  write: fc.boolean(),
  // Most accesses start a little before a page boundary.
  gpa: fc.oneof(
    fc.integer({ min: 0, max: 18 * PAGE }),
    fc.tuple(fc.nat(18), fc.nat(20)).map(([gfn, back]) => Math.max(0, gfn * PAGE - back)),
  ),
  length: fc.oneof(fc.nat(40), fc.nat(3 * PAGE)),
});

for (const later of [false, true]) {
  test(`RegionMemory is its bytes, one by one (${later ? 'asynchronous' : 'synchronous'} backends)`, async () => {
    const property = fc.asyncProperty(layout, fc.array(access, { maxLength: 12 }), async (rows, accesses) => {
      const sync = rows.map((row) => region(row.at, row.pages, row));
      const reference = new Reference(sync);
      const memory = new RegionMemory(rows.map((row) => region(row.at, row.pages, { ...row, later })));
      for (const [n, { write, gpa, length }] of accesses.entries()) {
        if (write) {
          const from = new Uint8Array(length).fill(n + 1);
          const done = memory.write(gpa, from);
          if (!later) assert.equal(isPending(done), false, 'a synchronous backend must not cost a promise');
          assert.equal(await done, reference.write(gpa, from), `write of ${length} at ${gpa}`);
        }
        const into = new Uint8Array(length);
        const done = memory.read(gpa, into);
        if (!later) assert.equal(isPending(done), false, 'a synchronous backend must not cost a promise');
        const expected = reference.read(gpa, length);
        assert.equal(await done, expected !== undefined, `read of ${length} at ${gpa}`);
        if (expected) assert.deepEqual(into, expected, `read of ${length} at ${gpa}`);
      }
    });
    await fc.assert(property, { numRuns: 80 });
  });
}

describe('RegionMemory', () => {
  test('a write that reaches a read-only region or a hole writes nothing', () => {
    for (const second of [region(1, 1, { readonly: true }), region(2, 1)]) {
      const memory = new RegionMemory([region(0, 1), second]);
      const before = memory.view(0, PAGE)!.slice();
      assert.equal(memory.write(PAGE - 4, new Uint8Array(8).fill(0xee)), false);
      assert.deepEqual(memory.view(0, PAGE), before);
    }
  });

  test('a region whose backend cannot write is read-only', () => {
    const { read } = bytesBackend(new Uint8Array(PAGE));
    const memory = new RegionMemory([{ gpa: 0, size: PAGE, readonly: false, backend: { read } }]);
    assert.equal(memory.write(0, new Uint8Array(1)), false);
  });

  test('a backend that fails makes the whole read fail', () => {
    const failing = { ...region(1, 1), backend: { read: () => false } };
    const memory = new RegionMemory([region(0, 1), failing]);
    assert.equal(memory.read(PAGE - 1, new Uint8Array(2)), false);
    assert.equal(memory.read(PAGE, new Uint8Array(2)), false);
  });

  test('view shows the memory itself, within one region only', () => {
    const memory = new RegionMemory([region(0, 1), region(1, 1)]);
    const view = memory.view(16, 8)!;
    assert.equal(memory.write(16, Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8)), true);
    assert.deepEqual([...view], [1, 2, 3, 4, 5, 6, 7, 8]);
    assert.equal(memory.view(PAGE - 4, 8), undefined);
    assert.equal(memory.view(2 * PAGE, 1), undefined);
  });

  test('addresses that are no addresses are not backed', () => {
    const memory = new RegionMemory([region(0, 1)]);
    for (const gpa of [-1, PAGE, 2 ** 52, 2 ** 64, Number.NaN, Number.POSITIVE_INFINITY]) {
      assert.equal(memory.read(gpa, new Uint8Array(1)), false, `${gpa}`);
      assert.equal(memory.write(gpa, new Uint8Array(1)), false, `${gpa}`);
      assert.equal(memory.view(gpa, 1), undefined, `${gpa}`);
    }
  });

  test('setRegions replaces the regions, also the one used last', () => {
    const memory = new RegionMemory([region(0, 4)]);
    assert.equal(memory.read(3 * PAGE, new Uint8Array(8)), true);
    memory.setRegions([region(0, 1), region(8, 1)]);
    assert.equal(memory.read(3 * PAGE, new Uint8Array(8)), false);
    assert.equal(memory.read(8 * PAGE, new Uint8Array(8)), true);
    assert.deepEqual(
      memory.regions.map(({ gpa }) => gpa),
      [0, 8 * PAGE],
    );
  });

  test('regions that overlap, are unsorted, unaligned or too high are refused and change nothing', () => {
    const memory = new RegionMemory([region(5, 1)]);
    const bad: BackedRegion[][] = [
      [region(0, 2), region(1, 1)],
      [region(4, 1), region(0, 1)],
      [{ ...region(0, 1), gpa: 12 }],
      [{ ...region(0, 1), size: 100 }],
      [{ ...region(0, 1), size: 0 }],
      [{ ...region(0, 1), gpa: 2 ** 52 }],
      [{ ...region(0, 1), gpa: Number.NaN }],
    ];
    for (const regions of bad) {
      assert.throws(() => memory.setRegions(regions), { name: 'KvmiError', code: 'E_MEMORY_REGIONS' });
    }
    assert.deepEqual(
      memory.regions.map(({ gpa }) => gpa),
      [5 * PAGE],
    );
  });
});

test('memoryEnd is the frame after the highest region that can be written', () => {
  assert.equal(memoryEnd([]), 0);
  assert.equal(memoryEnd([region(3, 1, { readonly: true })]), 0);
  assert.equal(memoryEnd([region(0, 2), region(16, 4), region(32, 8, { readonly: true })]), 20);
});

describe('readExactly', () => {
  const memory = new RegionMemory([region(0, 1), region(1, 1), region(4, 1)]);

  test('gives the bytes, across regions', () => {
    const bytes = readExactly(memory, PAGE - 2, 4);
    assert.ok(!isPending(bytes));
    assert.deepEqual(bytes, Uint8Array.of(4094, 4095, 31, 32));
  });

  test('names the first address that is not backed', () => {
    assert.throws(
      () => readExactly(memory, PAGE, 2 * PAGE),
      (error) =>
        error instanceof KvmiError &&
        error.code === 'E_NOT_BACKED' &&
        error.message.includes('guest-physical 0x1000') &&
        error.message.includes('no memory at 0x2000') &&
        error.data.hole === 2 * PAGE,
    );
  });

  test('tells a failed read from a hole', () => {
    const broken = new RegionMemory([{ ...region(0, 1), backend: { read: () => false } }]);
    assert.throws(() => readExactly(broken, 0, 8), /could not be read/);
  });
});

describe('nextData', () => {
  const sparse = (gfn: number, pages: number, data: readonly number[]): BackedRegion => ({
    ...region(gfn, pages),
    backend: {
      read: () => true,
      nextData: (offset) => data.map((page) => page * PAGE).find((at) => at >= offset) ?? pages * PAGE,
    },
  });

  test('skips what the backends say is empty, and holes', () => {
    const memory = new RegionMemory([sparse(0, 4, [1, 3]), sparse(8, 2, []), region(16, 1)]);
    assert.equal(memory.nextData(0), PAGE);
    assert.equal(memory.nextData(2 * PAGE), 3 * PAGE);
    assert.equal(memory.nextData(4 * PAGE), 16 * PAGE, 'an empty region is skipped');
    assert.equal(memory.nextData(16 * PAGE + 5), 16 * PAGE + 5, 'a backend that cannot tell is all data');
    assert.equal(memory.nextData(17 * PAGE), undefined);
  });
});

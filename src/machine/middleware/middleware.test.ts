import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { later } from '../../../test/kit/memory.ts';
import { isPending } from '../../awaitable.ts';
import { bytesBackend, cached, faulty, metered, RegionMemory } from '../index.ts';

const PAGE = 4096;

/** Eight pages, a hole of two, and two pages that are read-only. */
function memoryOf(bytes: Uint8Array = new Uint8Array(12 * PAGE)): RegionMemory {
  const part = (from: number, to: number) => bytesBackend(bytes.subarray(from * PAGE, to * PAGE));
  return new RegionMemory([
    { gpa: 0, size: 8 * PAGE, readonly: false, backend: part(0, 8) },
    { gpa: 10 * PAGE, size: 2 * PAGE, readonly: true, backend: part(10, 12) },
  ]);
}

function patterned(): Uint8Array {
  return Uint8Array.from({ length: 12 * PAGE }, (_, i) => i * 7 + (i >> 12));
}

describe('cached', () => {
  const access = fc.record({
    write: fc.boolean(),
    gpa: fc.oneof(
      fc.nat(13 * PAGE),
      fc.tuple(fc.nat(12), fc.nat(16)).map(([gfn, back]) => Math.max(0, gfn * PAGE - back)),
    ),
    length: fc.oneof(fc.nat(32), fc.nat(6 * PAGE)),
  });

  for (const pages of [1, 3, 64]) {
    test(`with ${pages} pages is the memory behind it`, async () => {
      await fc.assert(
        fc.asyncProperty(fc.array(access, { maxLength: 30 }), async (accesses) => {
          const plain = memoryOf(patterned());
          for (const memory of [memoryOf(patterned()), later(memoryOf(patterned()))]) {
            plain.write(0, patterned().subarray(0, 8 * PAGE));
            const cache = cached(memory, { pages });
            for (const [n, { write, gpa, length }] of accesses.entries()) {
              const expected = new Uint8Array(length).fill(n + 1);
              if (write) {
                assert.equal(await cache.write(gpa, expected), plain.write(gpa, expected), `write at ${gpa}`);
              }
              const backed = plain.read(gpa, expected);
              const into = new Uint8Array(length);
              assert.equal(await cache.read(gpa, into), backed, `read of ${length} at ${gpa}`);
              if (backed) assert.deepEqual(into, expected, `read of ${length} at ${gpa}`);
            }
          }
        }),
        { numRuns: 40 },
      );
    });
  }

  test('what is read while a write is under way is not kept', async () => {
    let open = () => {};
    const gate = new Promise<void>((resolve) => {
      open = resolve;
    });
    const plain = memoryOf();
    const { regions } = plain;
    const write = (gpa: number, from: Uint8Array) => gate.then(() => plain.write(gpa, from));
    const cache = cached({ regions, write, read: (gpa, into) => plain.read(gpa, into) }, { pages: 4 });
    const into = new Uint8Array(1);
    const written = cache.write(0, Uint8Array.of(7));
    assert.equal(cache.read(0, into), true);
    assert.equal(into[0], 0);
    open();
    await written;
    assert.equal(cache.read(0, into), true);
    assert.equal(into[0], 7);
  });

  test('reads that overlap each get their own page, however few are kept', async () => {
    const cache = cached(later(memoryOf(patterned())), { pages: 1 });
    const into = Array.from({ length: 40 }, () => new Uint8Array(8));
    await Promise.all(into.map((bytes, i) => cache.read((i % 7) * PAGE, bytes)));
    for (const [i, bytes] of into.entries()) {
      const start = (i % 7) * PAGE;
      assert.deepEqual(bytes, patterned().slice(start, start + 8), `read ${i}`);
    }
  });

  test('reads a page once, until invalidate', () => {
    const behind = metered(memoryOf());
    const cache = cached(behind, { pages: 4 });
    for (let i = 0; i < 100; i++) assert.equal(cache.read(i * 8, new Uint8Array(8)), true);
    assert.equal(behind.snapshot().reads.count, 1);
    cache.invalidate();
    assert.equal(cache.read(0, new Uint8Array(8)), true);
    assert.equal(behind.snapshot().reads.count, 2);
  });

  test('a page that was being read at invalidate is not kept', async () => {
    const behind = metered(later(memoryOf()));
    const cache = cached(behind, { pages: 4 });
    const early = cache.read(0, new Uint8Array(8));
    cache.invalidate();
    assert.equal(await early, true);
    await cache.read(0, new Uint8Array(8));
    assert.equal(behind.snapshot().reads.count, 2);
  });

  test('keeps what is in use and lets go of what is not', () => {
    const behind = metered(memoryOf());
    const cache = cached(behind, { pages: 3 });
    const touch = (gfn: number) => cache.read(gfn * PAGE, new Uint8Array(8));
    touch(3);
    touch(3);
    for (let i = 0; i < 40; i++) {
      touch([0, 1, 2, 4, 5, 6, 7][i % 7]!);
      touch(3);
    }
    assert.equal(behind.snapshot().reads.count, 41, 'the page in use was dropped');
  });

  test('long reads go past it', () => {
    const behind = metered(memoryOf());
    const cache = cached(behind, { pages: 4 });
    assert.equal(cache.read(0, new Uint8Array(8 * PAGE)), true);
    assert.equal(behind.snapshot().reads.count, 1);
  });

  test('what cannot be read is not kept', () => {
    const cache = cached(faulty(memoryOf(patterned()), { failReads: [1] }), { pages: 4 });
    const into = new Uint8Array(4);
    assert.equal(cache.read(PAGE, into), false);
    assert.equal(cache.read(PAGE, into), true);
    assert.deepEqual(into, patterned().slice(PAGE, PAGE + 4));
  });

  test('has a view where the memory has one', () => {
    assert.equal(cached(memoryOf(), { pages: 1 }).view?.(0, 8)?.length, 8);
    assert.equal(cached(later(memoryOf()), { pages: 1 }).view, undefined);
  });
});

describe('metered', () => {
  test('counts accesses, bytes and failures', async () => {
    for (const behind of [memoryOf(), later(memoryOf())]) {
      const memory = metered(behind);
      await memory.read(0, new Uint8Array(100));
      await memory.read(9 * PAGE, new Uint8Array(10));
      await memory.write(0, new Uint8Array(8));
      await memory.write(10 * PAGE, new Uint8Array(3));
      memory.view?.(0, 8);
      const { reads, writes } = memory.snapshot();
      assert.deepEqual({ ...reads, milliseconds: 0 }, { count: 2, bytes: 110, failed: 1, milliseconds: 0 });
      assert.deepEqual({ ...writes, milliseconds: 0 }, { count: 2, bytes: 11, failed: 1, milliseconds: 0 });
      assert.ok(reads.milliseconds > 0 && writes.milliseconds > 0);
    }
  });

  test('a snapshot stays as it is', () => {
    const memory = metered(memoryOf());
    const before = memory.snapshot();
    memory.read(0, new Uint8Array(8));
    assert.equal(before.reads.count, 0);
    assert.equal(memory.snapshot().reads.count, 1);
  });

  test('counts views, and what throws or rejects', async () => {
    const error = new Error('gone');
    const plan = { failReads: [1], failWrites: [1], error };
    const memory = metered(faulty(memoryOf(), plan));
    assert.throws(() => memory.read(0, new Uint8Array(1)), error);
    const slow = metered(faulty(memoryOf(), { ...plan, delay: () => Promise.resolve() }));
    await assert.rejects(Promise.resolve(slow.write(0, new Uint8Array(1))), error);
    assert.equal(memory.snapshot().reads.failed, 1);
    assert.equal(slow.snapshot().writes.failed, 1);
    const viewed = metered(memoryOf());
    assert.equal(viewed.view?.(0, 8)?.length, 8);
    assert.equal(viewed.view?.(9 * PAGE, 8), undefined);
    assert.equal(viewed.snapshot().views, 1);
  });

  test('costs no promise where the memory needs none', () => {
    assert.equal(isPending(metered(memoryOf()).read(0, new Uint8Array(8))), false);
  });
});

describe('faulty', () => {
  test('fails the accesses that the plan names, and no other', () => {
    const memory = faulty(memoryOf(), { failReads: [2, 3], failWrites: [1] });
    const read = () => memory.read(0, new Uint8Array(1));
    assert.deepEqual([read(), read(), read(), read()], [true, false, false, true]);
    const write = () => memory.write(0, Uint8Array.of(9));
    assert.equal(write(), false);
    const into = new Uint8Array(1);
    memory.read(0, into);
    assert.equal(into[0], 0, 'a failed write must not write');
    assert.equal(write(), true);
  });

  test('waits before each access', async () => {
    const gates: (() => void)[] = [];
    const delay = () => new Promise<void>((open) => gates.push(open));
    const bytes = new Uint8Array(12 * PAGE);
    const written = faulty(memoryOf(bytes), { delay }).write(0, Uint8Array.of(7));
    assert.equal(bytes[0], 0);
    gates[0]!();
    assert.equal(await written, true);
    assert.equal(bytes[0], 7);
  });

  test('changes the bytes of the corrupt range, and no other', () => {
    const memory = faulty(memoryOf(), { corrupt: { gpa: 100, size: 4, mask: 0xff } });
    const at = (gpa: number, size: number) => {
      const into = new Uint8Array(size);
      memory.read(gpa, into);
      return [...into];
    };
    assert.deepEqual(at(98, 8), [0, 0, 255, 255, 255, 255, 0, 0]);
    assert.deepEqual(at(102, 4), [255, 255, 0, 0]);
    assert.deepEqual(at(104, 2), [0, 0]);
    assert.deepEqual(at(96, 4), [0, 0, 0, 0]);
  });
});

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { later } from '../../test/kit/memory.ts';
import { LARGE, NX, PageTables, PRESENT, USER, WRITABLE } from '../../test/kit/page-tables.ts';
import { type LeafFilter, type LeafMapping, type LeafMappings, leafMappings, walk } from './index.ts';

const ALL: LeafFilter = { limit: 1000 };

function search(tables: PageTables, filter: LeafFilter = ALL): LeafMappings {
  return leafMappings(tables.memory, tables.paging, filter) as LeafMappings;
}

function gvas({ mappings }: LeafMappings): bigint[] {
  return mappings.map(({ gva }) => gva);
}

describe('leafMappings', () => {
  const modes = [
    {
      mode: '32-bit',
      pages: [
        [0x1000n, 12],
        [0xffff_f000n, 12],
      ],
    },
    {
      mode: '32-bit-pse',
      pages: [
        [0x1000n, 12],
        [0x0080_0000n, 22],
        [0xffc0_0000n, 22],
      ],
    },
    {
      mode: 'pae',
      pages: [
        [0x1000n, 12],
        [0x4020_0000n, 21],
        [0xffff_f000n, 12],
      ],
    },
    {
      mode: '4-level',
      pages: [
        [0x1000n, 12],
        [0x7fc0_0000_0000n, 30],
        [0xffff_8000_0000_0000n, 21],
        [0xffff_ffff_ffff_f000n, 12],
      ],
    },
    {
      mode: '5-level',
      pages: [
        [0n, 30],
        [0x00ff_ffff_ffff_f000n, 12],
        [0xff00_0000_0000_0000n, 12],
      ],
    },
  ] as const;
  for (const { mode, pages } of modes) {
    test(`${mode}: every page by address, with its size`, async () => {
      const tables = new PageTables(mode);
      for (const [gva, shift] of [...pages].reverse()) tables.map(gva, 0xc000_0000, { shift });
      const found = search(tables);
      const expected = pages.map(([gva, shift]) => [gva, 2 ** shift]);
      assert.deepEqual(
        found.mappings.map(({ gva, size }) => [gva, size]),
        expected,
      );
      assert.equal(found.cut, undefined);
      assert.deepEqual(await leafMappings(later(tables.memory), tables.paging, ALL), found);
    });
  }

  test('without paging everything is one mapping', () => {
    const { memory } = new PageTables('4-level');
    const paging = { mode: 'none', root: 0, nx: false } as const;
    const find = (filter: LeafFilter) => leafMappings(memory, paging, filter) as LeafMappings;
    assert.deepEqual(find(ALL).mappings, [
      { gva: 0n, gpa: 0, size: 2 ** 32, writable: true, user: true, executable: true },
    ]);
    assert.deepEqual(find({ ...ALL, executable: false }).mappings, []);
    assert.deepEqual(find({ ...ALL, from: 1n << 32n }).mappings, []);
  });

  test('filters by the rights of all levels together', () => {
    const tables = new PageTables('4-level');
    const step = 1n << 39n;
    tables.map(1n * step, 0, { flags: 0n });
    tables.map(2n * step, 0, { flags: WRITABLE | USER });
    tables.map(3n * step, 0, { flags: WRITABLE | USER | NX });
    tables.map(4n * step, 0, { flags: WRITABLE | USER, tableFlags: 0n });
    tables.map(5n * step, 0, { flags: WRITABLE | USER, tableFlags: WRITABLE | USER | NX });
    const find = (filter: Partial<LeafFilter>) =>
      gvas(search(tables, { ...ALL, ...filter })).map((gva) => gva / step);
    assert.deepEqual(find({ user: true }), [2n, 3n, 5n]);
    assert.deepEqual(find({ user: false }), [1n, 4n]);
    assert.deepEqual(find({ executable: true }), [1n, 2n, 4n]);
    assert.deepEqual(find({ executable: false }), [3n, 5n]);
    assert.deepEqual(find({ executable: true, user: false }), [1n, 4n]);
    assert.deepEqual(find({ writable: true, executable: true }), [2n]);
  });

  test('does not read tables that cannot map what is wanted', () => {
    const tables = new PageTables('4-level');
    tables.map(0n, 0, { tableFlags: WRITABLE | NX });
    tables.map(1n << 40n, 0);
    assert.equal(search(tables).tables, 7);
    assert.equal(search(tables, { ...ALL, executable: true }).tables, 4);
    assert.equal(search(tables, { ...ALL, from: 1n << 40n }).tables, 4);
    assert.equal(search(tables, { ...ALL, to: 1n << 40n }).tables, 4);
  });

  test('a page that reaches into the range belongs to it', () => {
    const tables = new PageTables('4-level');
    tables.map(0x20_0000n, 0, { shift: 21 });
    assert.equal(search(tables, { ...ALL, from: 0x3f_ffffn }).mappings.length, 1);
    assert.equal(search(tables, { ...ALL, from: 0x40_0000n }).mappings.length, 0);
    assert.equal(search(tables, { ...ALL, to: 0x20_0001n }).mappings.length, 1);
    assert.equal(search(tables, { ...ALL, to: 0x20_0000n }).mappings.length, 0);
  });

  test('says what the limit left out, and can go on there', () => {
    const tables = new PageTables('4-level');
    for (let i = 0n; i < 5n; i++) tables.map(0xffff_8000_0000_0000n + i * 4096n, 0);
    const first = search(tables, { limit: 3 });
    assert.equal(first.mappings.length, 3);
    assert.deepEqual(first.cut, { by: 'limit', gva: 0xffff_8000_0000_3000n });
    const rest = search(tables, { limit: 3, from: first.cut.gva });
    assert.deepEqual(gvas(rest), [0xffff_8000_0000_3000n, 0xffff_8000_0000_4000n]);
    assert.equal(rest.cut, undefined);
    assert.equal(search(tables, { limit: 5 }).cut, undefined, 'a limit that is just enough cuts nothing');
  });

  test('a table that lies nowhere is counted and passed over', () => {
    const tables = new PageTables('4-level');
    tables.map(1n << 40n, 0);
    tables.set(tables.paging.root, BigInt(2 ** 51) | PRESENT);
    const found = search(tables);
    assert.equal(found.unreadable, 1);
    assert.deepEqual(gvas(found), [1n << 40n]);
    const nowhere = { ...tables.paging, root: 2 ** 51 };
    const none = leafMappings(tables.memory, nowhere, ALL) as LeafMappings;
    assert.deepEqual([none.mappings.length, none.unreadable], [0, 1]);
  });

  test('a recursive mapping shows the tables as pages', () => {
    const tables = new PageTables('4-level');
    tables.map(0x1000n, 0x6000);
    const { root } = tables.paging;
    tables.set(root + 511 * 8, BigInt(root) | WRITABLE | PRESENT);
    const found = search(tables);
    assert.equal(found.cut, undefined);
    const last = found.mappings.at(-1)!;
    assert.deepEqual([last.gva, last.gpa], [0xffff_ffff_ffff_f000n, root]);
  });

  test('tables without end are cut, and it is said', async () => {
    const tables = new PageTables('5-level');
    const { root } = tables.paging;
    for (let i = 0; i < 512; i++) tables.set(root + i * 8, BigInt(root) | NX | PRESENT);
    const full = search(tables, { limit: 700 });
    assert.equal(full.mappings.length, 700);
    assert.equal(full.cut?.by, 'limit');
    const empty = search(tables, { limit: 10, user: true, tables: 300 });
    assert.deepEqual([empty.mappings.length, empty.tables, empty.cut], [0, 1, undefined]);
    const barren: LeafFilter = { limit: 10, executable: false, writable: false, user: false, tables: 300 };
    for (let i = 0; i < 512; i++) tables.set(root + i * 8, BigInt(root) | PRESENT);
    const cut = await leafMappings(later(tables.memory), tables.paging, barren);
    assert.deepEqual([cut.mappings.length, cut.tables, cut.cut?.by], [0, 300, 'tables']);
    const goesOn = search(tables, { ...barren, from: cut.cut!.gva });
    assert.equal(goesOn.cut?.by, 'tables');
    assert.ok(goesOn.cut.gva > cut.cut!.gva);
  });

  test('any garbage ends, and every mapping found is what a walk finds', async () => {
    let found = 0;
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom('32-bit', '32-bit-pse', 'pae', '4-level', '5-level'),
        fc.boolean(),
        fc.uint8Array({ minLength: 256, maxLength: 256 }),
        async (mode, nx, seed) => {
          const tables = new PageTables(mode, { nx, size: 0x8000 });
          const { bytes, entrySize } = tables;
          bytes.forEach((_, i) => {
            const byte = seed[(i * 7 + (i >> 8) * 13) % 256]!;
            // Addresses stay in the array, mostly; the other bits are whatever they are.
            if (i % entrySize === 1) bytes[i] = byte & 0x7f;
            else if (i % entrySize === 0 || byte < 3) bytes[i] = byte;
          });
          const filter = { limit: 200, tables: 100, from: BigInt(seed[0]!) << 12n };
          const result = search(tables, filter);
          assert.ok(result.tables <= 100 && result.mappings.length <= 200);
          assert.deepEqual(await leafMappings(later(tables.memory), tables.paging, filter), result);
          let previous: LeafMapping | undefined;
          for (const mapping of result.mappings) {
            if (previous) assert.ok(mapping.gva >= previous.gva + BigInt(previous.size), 'not ascending');
            previous = mapping;
            const seen = await walk(tables.memory, tables.paging, mapping.gva);
            const { gpa, pageSize: size, writable, user, executable } = seen;
            assert.deepEqual({ gva: mapping.gva, gpa, size, writable, user, executable }, mapping);
            found++;
          }
        },
      ),
      { numRuns: 100 },
    );
    assert.ok(found > 500, `only ${found} mappings in all: the tables are too poor to test anything`);
  });

  test('reads no more than the four entries at the top of PAE', () => {
    const tables = new PageTables('pae');
    tables.map(0x1000n, 0x6000);
    tables.set(tables.paging.root + 32, BigInt(tables.allocate()) | PRESENT | LARGE);
    assert.deepEqual(gvas(search(tables)), [0x1000n]);
  });
});

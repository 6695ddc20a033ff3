import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { later } from '../../test/kit/memory.ts';
import { PageTables } from '../../test/kit/page-tables.ts';
import { isPending } from '../awaitable.ts';
import { faulty, metered, readVirtual, Tlb, translate, writeVirtual } from './index.ts';

const GVA = 0xffff_8000_0000_1000n;

function mapped(): PageTables {
  const tables = new PageTables('4-level');
  tables.map(GVA, 0x6000);
  return tables;
}

describe('Tlb', () => {
  test('translates like translate, again and again, now and later', async () => {
    const modes = fc.constantFrom('32-bit', 'pae', '4-level', '5-level');
    const page = fc.record({ slot: fc.nat(40), gpa: fc.nat(200), large: fc.boolean() });
    const property = fc.asyncProperty(modes, fc.array(page, { maxLength: 12 }), async (mode, pages) => {
      const tables = new PageTables(mode);
      for (const { slot, gpa, large } of pages) {
        const shift = large && mode !== '32-bit' ? 21 : 12;
        const gva = BigInt(slot) << 21n;
        if (tables.get(tables.entryFor(gva, mode === '32-bit' ? 12 : 21)) !== 0n) continue;
        tables.map(gva, gpa << shift, { shift });
      }
      // So few entries that they fight for their places.
      for (const memory of [tables.memory, later(tables.memory)]) {
        const tlb = new Tlb(memory, 4);
        for (let round = 0; round < 2; round++) {
          for (let slot = 0n; slot < 41n; slot++) {
            for (const gva of [(slot << 21n) + 0x123n, (slot << 21n) + 0x1001n]) {
              const expected = await translate(tables.memory, tables.paging, gva);
              assert.equal(
                await tlb.translate(tables.paging, gva),
                expected,
                `${mode} 0x${gva.toString(16)}`,
              );
            }
          }
        }
      }
    });
    await fc.assert(property, { numRuns: 30 });
  });

  test('reads page tables once', () => {
    const { memory: plain, paging } = mapped();
    const memory = metered(plain);
    const tlb = new Tlb(memory);
    for (let i = 0; i < 10; i++) assert.equal(tlb.translate(paging, GVA + BigInt(i)), 0x6000 + i);
    assert.equal(memory.snapshot().reads.count, 4);
  });

  test('a hit is synchronous, also where memory is not', async () => {
    const { memory, paging } = mapped();
    const tlb = new Tlb(later(memory));
    assert.equal(await tlb.translate(paging, GVA), 0x6000);
    assert.equal(tlb.translate(paging, GVA + 5n), 0x6005);
  });

  test('shows changed tables after flush', () => {
    const tables = mapped();
    const tlb = new Tlb(tables.memory);
    assert.equal(tlb.translate(tables.paging, GVA), 0x6000);
    tables.map(GVA, 0x7000);
    assert.equal(tlb.translate(tables.paging, GVA), 0x6000);
    tlb.flush();
    assert.equal(tlb.translate(tables.paging, GVA), 0x7000);
  });

  test('does not keep what was looked up before a flush and found after it', async () => {
    const tables = mapped();
    const tlb = new Tlb(later(tables.memory));
    const early = tlb.translate(tables.paging, GVA);
    tlb.flush();
    await early;
    assert.ok(isPending(tlb.translate(tables.paging, GVA)), 'the translation from before the flush was kept');
  });

  test('keeps address spaces and modes apart', () => {
    const tables = mapped();
    const other = new PageTables('4-level');
    other.map(0x1000n, 0x9000);
    const tlb = new Tlb(tables.memory);
    assert.equal(tlb.translate(tables.paging, GVA), 0x6000);
    assert.equal(tlb.translate({ ...tables.paging, root: 0x20000 }, GVA), undefined);
    assert.equal(tlb.translate({ ...tables.paging, mode: 'none' }, 0x1000n), 0x1000);
    assert.equal(tlb.translate(tables.paging, 0x1000n), undefined);
  });

  test('does not keep that there is no translation', () => {
    const tables = mapped();
    const tlb = new Tlb(tables.memory);
    assert.equal(tlb.translate(tables.paging, 0x5000n), undefined);
    tables.map(0x5000n, 0x8000);
    assert.equal(tlb.translate(tables.paging, 0x5000n), 0x8000);
  });

  test('serves reads and writes of virtual memory', async () => {
    const tables = mapped();
    tables.map(GVA + 0x1000n, 0x9000);
    const memory = metered(tables.memory);
    const tlb = new Tlb(memory);
    const bytes = Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8);
    assert.equal(await writeVirtual(memory, tables.paging, GVA + 0xffcn, bytes, tlb), true);
    assert.equal(memory.snapshot().reads.count, 8);
    const into = new Uint8Array(8);
    assert.equal(await readVirtual(memory, tables.paging, GVA + 0xffcn, into, tlb), true);
    assert.deepEqual(into, bytes);
    assert.equal(memory.snapshot().reads.count, 10, 'the second access needs no page table');
  });

  test('a failed read of a page table is not kept', () => {
    const { memory, paging } = mapped();
    const tlb = new Tlb(faulty(memory, { failReads: [2] }));
    assert.equal(tlb.translate(paging, GVA), undefined);
    assert.equal(tlb.translate(paging, GVA), 0x6000);
  });
});

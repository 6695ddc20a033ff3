import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { later } from '../../test/kit/memory.ts';
import { LARGE, NX, PageTables, PRESENT, USER, WRITABLE } from '../../test/kit/page-tables.ts';
import { getU64 } from '../abi/bytes.ts';
import { putRegister, STATE_SIZE } from '../abi/state.ts';
import { CR0_PE, CR0_PG, CR4_LA57, CR4_PAE, CR4_PSE, EFER_LMA, EFER_LME, EFER_NXE } from '../abi/x86.ts';
import { isPending } from '../awaitable.ts';
import { pagingOf, readVirtual, translate, walk, writeVirtual } from './index.ts';

const MiB = 2 ** 20;
const GiB = 2 ** 30;

function stateWith(values: Partial<Record<'cr0' | 'cr3' | 'cr4' | 'efer', bigint>>): Uint8Array {
  const state = new Uint8Array(STATE_SIZE);
  for (const [name, value] of Object.entries(values)) putRegister(state, name as 'cr0', value);
  return state;
}

describe('pagingOf', () => {
  const cr3 = 0xfff0_1234_5678_9fffn;
  const on = CR0_PE | CR0_PG;
  const long = EFER_LMA | EFER_LME;
  const low = 0x5678_9000;
  const cases = [
    { name: 'none', state: { cr0: CR0_PE, cr4: CR4_PAE, efer: EFER_LME }, root: low },
    { name: '32-bit', state: { cr0: on }, root: low },
    { name: '32-bit-pse', state: { cr0: on, cr4: CR4_PSE }, root: low },
    { name: 'pae', state: { cr0: on, cr4: CR4_PAE | CR4_PSE, efer: EFER_NXE }, root: 0x5678_9fe0 },
    { name: '4-level', state: { cr0: on, cr4: CR4_PAE, efer: long }, root: 0x1234_5678_9000 },
    {
      name: '5-level',
      state: { cr0: on, cr4: CR4_PAE | CR4_LA57, efer: long | EFER_NXE },
      root: 0x1234_5678_9000,
    },
  ];
  for (const { name, state, root } of cases) {
    test(`finds ${name}`, () => {
      const nx = ((state.efer ?? 0n) & EFER_NXE) !== 0n;
      assert.deepEqual(pagingOf(stateWith({ ...state, cr3 })), { mode: name, root, nx });
    });
  }

  test('LA57 without long mode is PAE', () => {
    assert.equal(pagingOf(stateWith({ cr0: on, cr4: CR4_PAE | CR4_LA57 })).mode, 'pae');
  });
});

describe('translate', () => {
  test('takes a state block', () => {
    const tables = new PageTables('4-level');
    tables.map(0xffff_8000_0000_3000n, 0x77000);
    const cr3 = BigInt(tables.paging.root) | 0x18n;
    const state = stateWith({ cr0: CR0_PE | CR0_PG, cr3, cr4: CR4_PAE, efer: EFER_LMA | EFER_NXE });
    assert.equal(translate(tables.memory, state, 0xffff_8000_0000_3abcn), 0x77abc);
  });

  test('without paging is the identity up to 4 GiB', () => {
    const { memory } = new PageTables('4-level');
    const paging = { mode: 'none', root: 0, nx: false } as const;
    assert.equal(translate(memory, paging, 0xffff_fff0n), 0xffff_fff0);
    assert.equal(translate(memory, paging, 0x1_0000_0000n), undefined);
  });

  /** gva → gpa, with what must be mapped for it. Each gva is 0x123 into the page after the one mapped there, where large. */
  const pages = [
    { mode: '32-bit', gva: 0xc000_1000n, gpa: 0xfffe_d000, shift: 12 },
    { mode: '32-bit-pse', gva: 0xc000_1000n, gpa: 0xfffe_d000, shift: 12 },
    { mode: '32-bit-pse', gva: 0xc040_0000n, gpa: 0x0080_0000, shift: 22 },
    { mode: 'pae', gva: 0xffff_f000n, gpa: 0xf_ffff_f000, shift: 12 },
    { mode: 'pae', gva: 0x4020_0000n, gpa: 0x1_0020_0000, shift: 21 },
    { mode: '4-level', gva: 0x7fff_ffff_f000n, gpa: 0xf_ffff_ffff_f000, shift: 12 },
    { mode: '4-level', gva: 0xffff_ffff_8020_0000n, gpa: 0x1_2340_0000, shift: 21 },
    { mode: '4-level', gva: 0xffff_8880_4000_0000n, gpa: 3 * GiB, shift: 30 },
    { mode: '5-level', gva: 0x00ff_ffff_ffff_f000n, gpa: 0x5000, shift: 12 },
    { mode: '5-level', gva: 0xff11_0000_0020_0000n, gpa: 0x60_0000, shift: 21 },
    { mode: '5-level', gva: 0xff00_0000_0000_0000n, gpa: 512 * GiB, shift: 30 },
  ] as const;
  for (const { mode, gva, gpa, shift } of pages) {
    test(`${mode}: a page of 2^${shift} bytes`, async () => {
      const tables = new PageTables(mode);
      tables.map(gva, gpa, { shift });
      const last = 2 ** shift - 1;
      for (const memory of [tables.memory, later(tables.memory)]) {
        assert.equal(await translate(memory, tables.paging, gva), gpa);
        assert.equal(await translate(memory, tables.paging, gva + BigInt(last)), gpa + last);
        assert.equal(await translate(memory, tables.paging, gva - 1n), undefined);
      }
      const found = await walk(tables.memory, tables.paging, gva);
      assert.equal(found.pageSize, 2 ** shift);
    });
  }

  test('32-bit-pse: bits 20-13 of a 4 MiB entry are bits 39-32 of the address', () => {
    const tables = new PageTables('32-bit-pse');
    tables.map(0x0040_0000n, 0x0080_0000, { shift: 22, flags: 0xa5n << 13n });
    assert.equal(translate(tables.memory, tables.paging, 0x0040_0010n), 0xa5_0080_0010);
  });

  test('32-bit: without PSE the large bit means nothing', () => {
    const tables = new PageTables('32-bit');
    tables.map(0x5000n, 0x6000);
    const entry = tables.entryFor(0x5000n, 22);
    tables.set(entry, tables.get(entry) | LARGE);
    assert.equal(translate(tables.memory, tables.paging, 0x5001n), 0x6001);
  });

  test('an address above 4 GiB has no translation outside long mode', () => {
    for (const mode of ['32-bit', '32-bit-pse', 'pae'] as const) {
      const tables = new PageTables(mode);
      tables.map(0x5000n, 0x6000);
      assert.equal(translate(tables.memory, tables.paging, 0x5000n), 0x6000);
      assert.equal(translate(tables.memory, tables.paging, 0x1_0000_5000n), undefined, mode);
      assert.equal(translate(tables.memory, tables.paging, 0xffff_ffff_0000_5000n), undefined, mode);
    }
  });

  test('an address that is not canonical has no translation', async () => {
    const four = new PageTables('4-level');
    four.map(0x1000n, 0x6000);
    four.map(0x7fff_ffff_f000n, 0x6000);
    assert.equal(translate(four.memory, four.paging, 0x7fff_ffff_ffffn), 0x6fff);
    for (const gva of [0x8000_0000_0000n, 0x8000_0000_0000_1000n, 0xffff_7fff_ffff_f000n]) {
      assert.equal(translate(four.memory, four.paging, gva), undefined, gva.toString(16));
      assert.equal((await walk(four.memory, four.paging, gva)).fault, 'not-canonical');
    }
    const five = new PageTables('5-level');
    five.map(0x8000_0000_0000n, 0x6000);
    assert.equal(translate(five.memory, five.paging, 0x8000_0000_0000n), 0x6000);
    assert.equal(translate(five.memory, five.paging, 0x0100_8000_0000_0000n), undefined);
    assert.equal(translate(five.memory, five.paging, 0xfeff_ffff_ffff_f000n), undefined);
  });

  test('any present mapping will do for a supervisor', () => {
    const tables = new PageTables('4-level');
    tables.map(0x1000n, 0x6000, { flags: NX });
    tables.map(0x2000n, 0x7000, { flags: USER });
    assert.equal(translate(tables.memory, tables.paging, 0x1000n), 0x6000);
    assert.equal(translate(tables.memory, tables.paging, 0x2000n), 0x7000);
  });

  test('the answer may lie where there is no memory (devices), a table may not', async () => {
    const tables = new PageTables('4-level');
    tables.map(0x1000n, 0xfee0_0000);
    assert.equal(translate(tables.memory, tables.paging, 0x1000n), 0xfee0_0000);
    tables.set(tables.entryFor(0x1000n, 21), 0xfee0_0000n | PRESENT);
    assert.equal(translate(tables.memory, tables.paging, 0x1000n), undefined);
    const { fault, entries } = await walk(tables.memory, tables.paging, 0x1000n);
    assert.equal(fault, 'not-backed');
    assert.equal(entries.length, 3);
    const nowhere = { ...tables.paging, root: 2 ** 51 };
    assert.equal(translate(tables.memory, nowhere, 0x1000n), undefined);
  });

  /** Bits that every processor faults on: at the level with that shift, in an entry of a page of 2^leaf bytes. */
  const reserved = [
    { mode: '32-bit-pse', at: 22, leaf: 22, bits: 1n << 21n },
    { mode: 'pae', at: 30, leaf: 12, bits: WRITABLE },
    { mode: 'pae', at: 30, leaf: 12, bits: USER },
    { mode: 'pae', at: 30, leaf: 12, bits: LARGE },
    { mode: 'pae', at: 30, leaf: 12, bits: NX },
    { mode: 'pae', at: 21, leaf: 21, bits: 1n << 13n },
    { mode: 'pae', at: 12, leaf: 12, bits: 1n << 62n },
    { mode: '4-level', at: 39, leaf: 12, bits: LARGE },
    { mode: '4-level', at: 30, leaf: 30, bits: 1n << 29n },
    { mode: '4-level', at: 21, leaf: 21, bits: 1n << 20n },
    { mode: '5-level', at: 48, leaf: 12, bits: LARGE },
  ] as const;
  for (const { mode, at, leaf, bits } of reserved) {
    test(`${mode}: bits 0x${bits.toString(16)} at shift ${at} are reserved`, async () => {
      const tables = new PageTables(mode);
      tables.map(0n, 0, { shift: leaf });
      assert.equal(translate(tables.memory, tables.paging, 0n), 0);
      const entry = tables.entryFor(0n, at);
      tables.set(entry, tables.get(entry) | bits);
      assert.equal(translate(tables.memory, tables.paging, 0n), undefined);
      assert.equal((await walk(tables.memory, tables.paging, 0n)).fault, 'reserved-bits');
    });
  }

  test('bits 52-62 are ignored in long mode, and the PAT bit of a large page is no address bit', () => {
    const tables = new PageTables('4-level');
    tables.map(0x20_0000n, 4 * MiB, {
      shift: 21,
      flags: (0x7ffn << 52n) | (1n << 12n),
      tableFlags: 0x7ffn << 52n,
    });
    assert.equal(translate(tables.memory, tables.paging, 0x20_0004n), 4 * MiB + 4);
  });

  test('bit 63 is reserved without EFER.NXE', () => {
    const tables = new PageTables('4-level', { nx: false });
    tables.map(0x1000n, 0x6000, { flags: NX });
    tables.map(0x2000n, 0x6000);
    assert.equal(translate(tables.memory, tables.paging, 0x1000n), undefined);
    assert.equal(translate(tables.memory, tables.paging, 0x2000n), 0x6000);
  });

  test('a table that names itself is walked to the end of the levels', () => {
    const tables = new PageTables('4-level');
    const { root } = tables.paging;
    tables.set(root + 511 * 8, BigInt(root) | WRITABLE | PRESENT);
    assert.equal(translate(tables.memory, tables.paging, 0xffff_ffff_ffff_f018n), root + 0x18);
  });

  test('memory that answers now costs no promise', () => {
    const tables = new PageTables('5-level');
    tables.map(0x1000n, 0x6000);
    assert.equal(isPending(translate(tables.memory, tables.paging, 0x1000n)), false);
    assert.equal(isPending(walk(tables.memory, tables.paging, 0x1000n)), false);
    assert.equal(isPending(readVirtual(tables.memory, tables.paging, 0x1000n, new Uint8Array(8))), false);
  });

  test('walks that overlap do not disturb one another', async () => {
    const tables = new PageTables('4-level');
    const gvas = Array.from({ length: 50 }, (_, i) => BigInt(i) << 21n);
    for (const [i, gva] of gvas.entries()) tables.map(gva, i * 4096);
    const slow = later(tables.memory);
    const all = await Promise.all(gvas.map((gva) => translate(slow, tables.paging, gva)));
    assert.deepEqual(
      all,
      gvas.map((_, i) => i * 4096),
    );
  });

  test('a memory that throws does not spoil the next walk', async () => {
    const tables = new PageTables('4-level');
    tables.map(0x1000n, 0x6000);
    const error = new Error('the VMM is gone');
    const { regions } = tables.memory;
    const write = () => false;
    const throwing = {
      regions,
      write,
      read: () => {
        throw error;
      },
    };
    assert.throws(() => translate(throwing, tables.paging, 0x1000n), error);
    const rejecting = { regions, write, read: () => Promise.reject(error) };
    await assert.rejects(Promise.resolve(translate(rejecting, tables.paging, 0x1000n)), error);
    assert.equal(translate(tables.memory, tables.paging, 0x1000n), 0x6000);
  });
});

describe('walk', () => {
  test('tells every entry and the rights of all levels together', async () => {
    const tables = new PageTables('4-level');
    tables.map(0x1234_5000n, 0x6000, { flags: WRITABLE | NX, tableFlags: USER | WRITABLE });
    const found = await walk(tables.memory, tables.paging, 0x1234_5678n);
    assert.equal(found.gpa, 0x6678);
    assert.equal(found.fault, undefined);
    assert.equal(found.pageSize, 4096);
    assert.deepEqual([found.writable, found.user, found.executable], [true, false, false]);
    assert.deepEqual(
      found.entries.map(({ level }) => level),
      [4, 3, 2, 1],
    );
    for (const { gpa, value } of found.entries) assert.equal(value, getU64(tables.bytes, gpa));
  });

  test('an upper level takes away rights', async () => {
    const tables = new PageTables('4-level');
    tables.map(0x1000n, 0x6000, { flags: WRITABLE | USER, tableFlags: NX });
    const { writable, user, executable } = await walk(tables.memory, tables.paging, 0x1000n);
    assert.deepEqual([writable, user, executable], [false, false, false]);
  });

  test('PAE: the top entries, which have no rights, take none away', async () => {
    const tables = new PageTables('pae');
    tables.map(0x1000n, 0x6000, { flags: WRITABLE | USER });
    const { writable, user, executable } = await walk(tables.memory, tables.paging, 0x1000n);
    assert.deepEqual([writable, user, executable], [true, true, true]);
  });

  test('says where it ended', async () => {
    const tables = new PageTables('4-level');
    tables.map(0x1000n, 0x6000);
    const { gpa, fault, pageSize, entries } = await walk(tables.memory, tables.paging, 0x20_0000n);
    assert.equal(gpa, undefined);
    assert.equal(fault, 'not-present');
    assert.equal(pageSize, 2 * MiB);
    assert.equal(entries.length, 3);
  });
});

describe('readVirtual and writeVirtual', () => {
  const base = 0xffff_c900_0000_0000n;
  function scattered(): PageTables {
    const tables = new PageTables('4-level');
    tables.map(base, 0x80000);
    tables.map(base + 0x1000n, 0x40000);
    tables.map(base + 0x2000n, 0xfee0_0000);
    return tables;
  }

  test('a write and a read across pages go to both frames', async () => {
    const tables = scattered();
    const bytes = Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8);
    for (const memory of [tables.memory, later(tables.memory)]) {
      assert.equal(await writeVirtual(memory, tables.paging, base + 0xffdn, bytes), true);
      assert.deepEqual([...tables.bytes.subarray(0x80ffd, 0x81000)], [1, 2, 3]);
      assert.deepEqual([...tables.bytes.subarray(0x40000, 0x40005)], [4, 5, 6, 7, 8]);
      const into = new Uint8Array(8);
      assert.equal(await readVirtual(memory, tables.paging, base + 0xffdn, into), true);
      assert.deepEqual(into, bytes);
      tables.bytes.fill(0, 0x40000, 0x41000);
    }
  });

  test('a range that is not all mapped is false, and not written', async () => {
    const tables = scattered();
    const bytes = new Uint8Array(0x2004).fill(0xee);
    assert.equal(await writeVirtual(tables.memory, tables.paging, base - 4n, bytes), false);
    const toUnmapped = new Uint8Array(0x2000).fill(0xee);
    assert.equal(await writeVirtual(tables.memory, tables.paging, base + 0x1fffn, toUnmapped), false);
    assert.equal(tables.bytes.includes(0xee), false);
    assert.equal(await readVirtual(tables.memory, tables.paging, base + 0x2ff0n, new Uint8Array(32)), false);
  });

  test('a range that is mapped to where there is no memory is false', async () => {
    const tables = scattered();
    assert.equal(await readVirtual(tables.memory, tables.paging, base + 0x1ff0n, new Uint8Array(32)), false);
    assert.equal(await writeVirtual(tables.memory, tables.paging, base + 0x1ff0n, new Uint8Array(32)), false);
  });

  test('a range does not wrap at the last address', async () => {
    const tables = new PageTables('4-level');
    tables.map(0xffff_ffff_ffff_f000n, 0x80000);
    tables.map(0n, 0x40000);
    const last = 0xffff_ffff_ffff_fff8n;
    assert.equal(await readVirtual(tables.memory, tables.paging, last, new Uint8Array(8)), true);
    assert.equal(await readVirtual(tables.memory, tables.paging, last, new Uint8Array(9)), false);
    assert.equal(await readVirtual(tables.memory, tables.paging, -8n, new Uint8Array(9)), false);
  });

  test('a large page is one read', async () => {
    const tables = new PageTables('4-level');
    tables.map(0n, 0, { shift: 21 });
    const reads: number[] = [];
    const { memory } = tables;
    const counting = {
      regions: memory.regions,
      write: () => false,
      read: (gpa: number, into: Uint8Array) => {
        if (into.length > 8) reads.push(into.length);
        return memory.read(gpa, into);
      },
    };
    assert.equal(await readVirtual(counting, tables.paging, 0x1234n, new Uint8Array(0x8000)), true);
    assert.deepEqual(reads, [0x8000]);
  });
});

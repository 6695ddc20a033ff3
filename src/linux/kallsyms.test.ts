import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { cpuTime } from '../../test/kit/cpu-time.ts';
import { type KallsymsOptions, kallsymsImage, type SymbolLine } from '../../test/kit/kallsyms-image.ts';
import { KvmiError } from '../error.ts';
import { decodeKallsyms } from './kallsyms.ts';
import { findTokenTables, tablesAround } from './kallsyms-search.ts';
import type { SymbolTable } from './symbols.ts';

const TEXT = 0xffff_ffff_9a00_0000n;
const IMAGE = 0xffff_ffff_9b00_0000n;

/** Per-CPU symbols first, as kallsyms has them before 6.15, then text. */
function symbols(count: number, perCpu: boolean): SymbolLine[] {
  return Array.from({ length: count }, (_, i) => {
    const isPerCpu = perCpu && i < 20;
    const name = i === 40 ? `very_long_${'init_lock'.repeat(30)}` : `__x64_sys_${i % 7}_init_${i}`;
    const address = isPerCpu ? BigInt(i * 64) : TEXT + BigInt(i * 48);
    return { name, type: isPerCpu ? 'A' : 'T', address };
  });
}

/** Every layout that was, by the kernels that had it. */
const LAYOUTS: Readonly<Record<string, Omit<KallsymsOptions, 'address'>>> = {
  '4.0 to 4.5': { order: 'addresses-first', form: 'absolute', markerSize: 8, sequences: false },
  '4.6 to 4.19': { order: 'addresses-first', form: 'absolute-percpu', markerSize: 8, sequences: false },
  '4.20 to 6.1': { order: 'addresses-first', form: 'absolute-percpu', markerSize: 4, sequences: false },
  '6.2 and 6.3, and 6.1 with backports': {
    order: 'addresses-first',
    form: 'absolute-percpu',
    markerSize: 4,
    sequences: true,
  },
  '6.4 to 6.14': { order: 'addresses-last', form: 'absolute-percpu', markerSize: 4, sequences: true },
  'since 6.15': { order: 'addresses-last', form: 'relative', markerSize: 4, sequences: true },
  'place-relative': { order: 'addresses-last', form: 'place-relative', markerSize: 4, sequences: true },
};

function found(bytes: Buffer, address = IMAGE): SymbolTable | undefined {
  for (const at of findTokenTables(bytes)) {
    const tables = tablesAround(bytes, at, address);
    if (tables !== undefined) return decodeKallsyms(tables);
  }
  return undefined;
}

for (const [name, layout] of Object.entries(LAYOUTS)) {
  describe(`kallsyms of ${name}`, () => {
    test('is found and decoded whatever lies before it', () => {
      for (const count of [700, 1024, 3001]) {
        for (const before of [0, 8, 1000, 4096]) {
          const lines = symbols(count, layout.form === 'absolute-percpu');
          const { bytes } = kallsymsImage(lines, { ...layout, address: IMAGE, before });
          const table = found(bytes);
          assert.ok(table !== undefined, `${count} symbols behind ${before} bytes are found`);
          assert.deepEqual([...table], lines);
        }
      }
    });

    test('damage gives an answer or a KvmiError, soon', () => {
      const lines = symbols(700, layout.form === 'absolute-percpu');
      const { bytes } = kallsymsImage(lines, { ...layout, address: IMAGE });
      const mutation = fc.record({
        at: fc.nat(bytes.length - 8),
        value: fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }),
      });
      fc.assert(
        fc.property(fc.array(mutation, { minLength: 1, maxLength: 20 }), (mutations) => {
          const damaged = Buffer.from(bytes);
          for (const { at, value } of mutations) damaged.writeBigUInt64LE(value, at);
          const start = cpuTime();
          try {
            found(damaged);
          } catch (error) {
            assert.ok(error instanceof KvmiError, String(error));
          }
          assert.ok(cpuTime() - start < 2000);
        }),
        { numRuns: 100 },
      );
    });
  });
}

describe('symbols', () => {
  const lines = symbols(1000, true);
  const { bytes } = kallsymsImage(lines, { ...LAYOUTS['6.4 to 6.14']!, address: IMAGE });
  const table = found(bytes)!;

  test('each is found by its name', () => {
    for (const { name, address } of lines) assert.equal(table.address(name), address);
    assert.equal(table.address('__x64_sys_'), undefined);
  });

  test('each address belongs to the symbol before it', () => {
    for (const { name, address } of lines.slice(20))
      assert.deepEqual([table.lookup(address + 47n)?.name, table.lookup(address + 47n)?.offset], [name, 47]);
    assert.equal(table.nextAfter(lines[30]!.address), lines[31]!.address);
    assert.deepEqual(table.namesAt(lines[30]!.address), [lines[30]!.name]);
  });

  test('memory made of digits and zeros costs no time', () => {
    const digits = Buffer.from('0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00'.repeat(50_000), 'latin1');
    const start = cpuTime();
    assert.deepEqual([...findTokenTables(digits)], []);
    const zeros = Buffer.alloc(8 << 20);
    tablesAround(zeros, { table: zeros.length - 4096, index: zeros.length - 2048 }, IMAGE);
    assert.ok(cpuTime() - start < 5000);
  });
});

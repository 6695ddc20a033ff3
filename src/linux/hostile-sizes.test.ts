import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { btfImage } from '../../test/kit/btf-image.ts';
import { cpuTime } from '../../test/kit/cpu-time.ts';
import { kallsymsImage } from '../../test/kit/kallsyms-image.ts';
import { LARGE, PRESENT, WRITABLE } from '../../test/kit/page-tables.ts';
import { DIRECT_MAP, offsetIn, SyntheticLinux } from '../../test/kit/synthetic-linux.ts';
import { type Awaitable, isPending } from '../awaitable.ts';
import { Btf } from '../btf/btf.ts';
import { fieldOf, sizeOf } from '../btf/types.ts';
import { KvmiError } from '../error.ts';
import type { PhysicalMemory } from '../machine/index.ts';
import { Linux } from './index.ts';
import { decodeKallsyms } from './kallsyms.ts';
import { findTokenTables, tablesAround } from './kallsyms-search.ts';

/* Sizes, counts and lengths that a guest may claim, one at a time, in every place. */

function now<T>(value: Awaitable<T>): T {
  assert.ok(!isPending(value), 'the answer is there at once');
  return value;
}

function find(memory: PhysicalMemory): Linux {
  return now(Linux.find(memory, { cache: false }));
}

/** An answer or a KvmiError, within `limitMs`. */
function survives(what: string, limitMs: number, use: () => void): void {
  const start = cpuTime();
  try {
    use();
  } catch (error) {
    if (!(error instanceof KvmiError)) throw error;
  }
  assert.ok(cpuTime() - start < limitMs, `${what}: it takes no longer than ${limitMs} ms`);
}

const WORDS = [0, 1, 0x7f, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_fff8, 0xffff_ffff];

describe('every word of a table with a value that means trouble', () => {
  test('in BTF', () => {
    const image = btfImage({
      part: { size: 8, members: { low: [0, 'u32'], high: [4, 's32'] } },
      whole: { size: 64, members: { name: [0, 'char[16]'], parts: [24, 'struct part[4]'] } },
    });
    for (let at = 0; at + 4 <= image.length; at += 4) {
      for (const value of WORDS) {
        const bytes = Buffer.from(image);
        bytes.writeUInt32LE(value, at);
        survives(`${value} at ${at}`, 2000, () => {
          const btf = new Btf(bytes);
          for (const name of btf.names()) {
            const type = btf.find(name)!;
            sizeOf(type);
            fieldOf(type, 'parts[3].high');
          }
        });
      }
    }
  });

  for (const order of ['addresses-first', 'addresses-last'] as const) {
    test(`in kallsyms with ${order}`, () => {
      const lines = Array.from({ length: 600 }, (_, i) => ({
        name: `function_${i}`,
        type: 't',
        address: 0xffff_ffff_8100_0000n + BigInt(16 * i),
      }));
      const address = 0xffff_ffff_8200_0000n;
      const options = { order, form: 'relative', markerSize: 4, sequences: true, address } as const;
      const image = kallsymsImage(lines, options);
      const { names, count, tokenTable, tokenIndex, offsets, base } = image;
      const places = [names, count, tokenTable, tokenIndex, offsets, base!].flatMap((start) =>
        Array.from({ length: 12 }, (_, i) => start + 4 * i),
      );
      for (let at = tokenTable - 32; at < tokenTable; at += 4) places.push(at);
      for (const at of places) {
        if (at + 4 > image.bytes.length) continue;
        for (const value of WORDS) {
          const bytes = Buffer.from(image.bytes);
          bytes.writeUInt32LE(value, at);
          survives(`${value} at ${at}`, 2000, () => {
            for (const table of findTokenTables(bytes)) {
              const tables = tablesAround(bytes, table, address);
              if (tables !== undefined) decodeKallsyms(tables);
            }
          });
        }
      }
    });
  }
});

/** A guest whose second process has memory and files of its own. */
function withProcess(prepare: (guest: SyntheticLinux, mm: number, table: number) => void): Linux {
  const guest = new SyntheticLinux();
  const [mm, files, table] = [guest.allocate(64), guest.allocate(64), guest.allocate(64)];
  const task = guest.tasks[2]!;
  guest.pointer(guest.member(task, 'mm'), guest.gva(mm));
  guest.pointer(guest.member(task, 'files'), guest.gva(files));
  guest.pointer(files, guest.gva(table));
  // Its page tables are the kernel's.
  guest.pointer(mm + offsetIn('mm_struct', 'pgd'), DIRECT_MAP + 0x1000n);
  prepare(guest, mm, table);
  return find(guest.memory);
}

const LENGTHS = [1n << 20n, 1n << 32n, (1n << 63n) - 1n, 1n << 63n, (1n << 64n) - 1n];

describe('lengths up to 2^64', () => {
  for (const length of LENGTHS) {
    test(`arguments and environment of ${length} bytes are cut or left out`, () => {
      const linux = withProcess((guest, mm) => {
        for (const part of ['arg', 'env']) {
          guest.pointer(mm + offsetIn('mm_struct', `${part}_start`), DIRECT_MAP);
          guest.pointer(mm + offsetIn('mm_struct', `${part}_end`), DIRECT_MAP + length);
        }
      });
      survives('processes', 5000, () => {
        const { rows } = now(linux.processes());
        assert.equal(rows.length, 5);
        const size = rows.reduce((sum, row) => sum + row.commandLine.join('').length, 0);
        assert.ok(size <= 128 << 10, `${size} characters`);
      });
      survives('environment', 5000, () => assert.ok(now(linux.environment(2)).rows.length < 1 << 18));
    });
  }

  test('a table of 2^32 open files is cut, and says so', () => {
    const linux = withProcess((guest, _mm, table) => {
      guest.bytes.writeUInt32LE(0xffff_ffff, table);
      guest.pointer(table + 8, DIRECT_MAP);
    });
    survives('files', 8000, () => {
      const { partial, reasons } = now(linux.files(undefined, { timeoutMs: 2000 }));
      assert.equal(partial, true);
      assert.match(reasons.join(), /table of 4294967295 open files/);
    });
  });
});

const GIB = 2 ** 30;
const TASK_SIZE = 512;

/** Memory behind that of `guest` in which there is no end of tasks, each the next one's neighbour. */
function endless(guest: SyntheticLinux): PhysicalMemory {
  // The second gigabyte of the direct map.
  guest.pointer(0x3008, BigInt(GIB) | PRESENT | WRITABLE | LARGE);
  const template = Buffer.from(guest.bytes.subarray(guest.tasks[1]!, guest.tasks[1]! + TASK_SIZE));
  const link = offsetIn('task_struct', 'tasks');
  guest.pointer(guest.member(guest.tasks[0]!, 'tasks'), DIRECT_MAP + BigInt(GIB + link));
  return {
    regions: [...guest.memory.regions, { gpa: GIB, size: GIB, readonly: false }],
    write: () => false,
    read: (gpa, into) => {
      if (gpa < GIB) return guest.memory.read(gpa, into);
      for (let at = 0; at < into.length; at += TASK_SIZE) {
        const next = gpa + at + TASK_SIZE;
        template.writeBigUInt64LE(DIRECT_MAP + BigInt(next + link), link);
        template.writeInt32LE((next - GIB) / TASK_SIZE, offsetIn('task_struct', 'tgid'));
        into.set(template.subarray(0, Math.min(TASK_SIZE, into.length - at)), at);
      }
      return true;
    },
  };
}

describe('two million tasks', () => {
  const linux = find(endless(new SyntheticLinux(2)));

  test('are cut at the limit or when the time is up, and the list says so', () => {
    const before = process.memoryUsage().rss;
    const start = cpuTime();
    const { rows, partial, reasons } = now(linux.processes({ timeoutMs: 20_000 }));
    assert.ok(rows.length > 0 && rows.length <= 262_144, `${rows.length} rows`);
    assert.equal(partial, true);
    assert.match(reasons.join(), /more than 262144|time was up/);
    assert.ok(cpuTime() - start < 30_000, 'it takes no longer');
    const grown = process.memoryUsage().rss - before;
    assert.ok(grown < GIB, `${grown} bytes more`);
  });

  test('do not stop what looks at all of them', () => {
    for (const [what, ask] of [
      ['threads', () => linux.threads(undefined, { timeoutMs: 1000 })],
      ['files', () => linux.files(undefined, { timeoutMs: 1000 })],
      ['check', () => linux.check({}, { timeoutMs: 1000 })],
    ] as const) {
      const start = cpuTime();
      assert.equal(now<{ partial: boolean }>(ask()).partial, true, what);
      assert.ok(cpuTime() - start < 10_000, `${what} takes no longer`);
    }
  });
});

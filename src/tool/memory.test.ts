import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import fc from 'fast-check';
import { codeOf, type Hooked, type HookedOptions, hooked } from '../../test/kit/hooked.ts';
import type { ScriptedHost } from '../../test/kit/scripted-host.ts';
import { PAGE_SIZE } from '../machine/index.ts';

const GIB = 2 ** 30;

/** Memory behind a scripted host: `pages` are backed, `readonly` ones refuse writes. */
class Pages {
  readonly bytes: Uint8Array;
  readonly missing = new Set<number>();
  readonly readonly = new Set<number>();
  outstanding = 0;
  most = 0;

  constructor(count: number) {
    this.bytes = Uint8Array.from({ length: count * PAGE_SIZE }, (_, i) => (i * 7 + (i >> 12)) & 0xff);
  }

  install(host: ScriptedHost, delay: () => Promise<void> | undefined = () => undefined): void {
    const there = (gpa: number, size: number) => {
      assert.ok(size > 0 && size <= PAGE_SIZE && (gpa % PAGE_SIZE) + size <= PAGE_SIZE, 'one page an access');
      return gpa + size <= this.bytes.length && !this.missing.has(Math.floor(gpa / PAGE_SIZE));
    };
    const slowly = <T>(result: T): T | Promise<T> => {
      const wait = delay();
      if (!wait) return result;
      this.most = Math.max(this.most, ++this.outstanding);
      return wait.then(() => {
        this.outstanding--;
        return result;
      });
    };
    host.on('VM_READ_PHYSICAL', ({ body: { gpa, size } }) =>
      slowly(there(gpa, size) ? { data: this.bytes.slice(gpa, gpa + size) } : 2),
    );
    host.on('VM_WRITE_PHYSICAL', ({ body: { gpa, size, data } }) => {
      const refused = this.readonly.has(Math.floor(gpa / PAGE_SIZE));
      if (!there(gpa, size) || refused) return slowly(2);
      this.bytes.set(data, gpa);
      return slowly({});
    });
  }
}

async function withPages(count: number, options: HookedOptions = {}, delay?: () => Promise<void>) {
  const pages = new Pages(count);
  const all: Hooked = await hooked({ ...options, prepare: (host) => pages.install(host, delay) });
  return { ...all, pages };
}

test('reads and writes of any length and alignment are those of the memory', async () => {
  const { guest, pages } = await withPages(8);
  await fc.assert(
    fc.asyncProperty(
      fc.nat({ max: 8 * PAGE_SIZE }),
      fc.nat({ max: 4 * PAGE_SIZE }),
      fc.boolean(),
      async (gpa, size, write) => {
        const inside = gpa + size <= pages.bytes.length || size === 0;
        const before = pages.bytes.slice();
        const bytes = new Uint8Array(size).fill(0x5a);
        const done = await (write ? guest.memory.write(gpa, bytes) : guest.memory.read(gpa, bytes));
        assert.equal(done, inside);
        if (write && inside) before.set(bytes, gpa);
        assert.deepEqual(pages.bytes, before);
        if (!write && inside) assert.deepEqual(bytes, before.slice(gpa, gpa + size));
      },
    ),
    { numRuns: 200 },
  );
});

test('an in-process host answers at once, without a promise', async () => {
  const { guest } = await withPages(4);
  assert.equal(guest.memory.read(100, new Uint8Array(8)), true);
  assert.equal(guest.memory.read(100, new Uint8Array(3 * PAGE_SIZE)), true);
  assert.equal(guest.memory.read(4 * PAGE_SIZE, new Uint8Array(8)), false);
});

test('a large read keeps a bounded number of commands under way', async () => {
  const { guest, pages } = await withPages(512, {}, () => turn());
  const into = new Uint8Array(512 * PAGE_SIZE);
  assert.equal(await guest.memory.read(0, into), true);
  assert.deepEqual(into, pages.bytes);
  assert.ok(pages.most > 8 && pages.most <= 64, `${pages.most} were under way`);
  assert.equal(pages.outstanding, 0);
});

test('a read that hits a hole stops asking', async () => {
  const { guest, pages, host } = await withPages(512, {}, () => turn());
  pages.missing.add(3);
  const before = host.got('VM_READ_PHYSICAL').length;
  assert.equal(await guest.memory.read(0, new Uint8Array(512 * PAGE_SIZE)), false);
  const asked = host.got('VM_READ_PHYSICAL').length - before;
  assert.ok(asked < 200, `${asked} pages were asked for`);
  assert.equal(pages.outstanding, 0);
});

for (const kind of ['missing', 'readonly'] as const) {
  test(`a write to a range with a ${kind} page changes nothing`, async () => {
    for (const delay of [undefined, () => turn()]) {
      const { guest, pages } = await withPages(100, {}, delay);
      pages[kind].add(70);
      const before = pages.bytes.slice();
      assert.equal(await guest.memory.write(10, new Uint8Array(80 * PAGE_SIZE).fill(1)), false);
      assert.deepEqual(pages.bytes, before);
    }
  });
}

test('addresses that no memory can have are not asked for', async () => {
  const { guest, host } = await withPages(1);
  const before = host.received.length;
  assert.equal(await guest.memory.read(-1, new Uint8Array(1)), false);
  assert.equal(await guest.memory.read(2 ** 52 - 1, new Uint8Array(2)), false);
  assert.equal(await guest.memory.write(2 ** 60, new Uint8Array(2)), false);
  assert.equal(host.received.length, before);
});

test('readBytes and u64 give bytes, or say what is missing', async () => {
  const { guest, pages } = await withPages(2);
  assert.deepEqual(await guest.memory.readBytes(4090, 12), pages.bytes.slice(4090, 4102));
  assert.equal(await guest.memory.u64(16), Buffer.from(pages.bytes).readBigUInt64LE(16));
  assert.equal(await codeOf(guest.memory.readBytes(2 * PAGE_SIZE - 4, 8)), 'E_NOT_BACKED');
});

test('a refusal that is not about the memory is an error', async () => {
  const { guest, host } = await hooked();
  host.on('VM_READ_PHYSICAL', () => 1).on('VM_WRITE_PHYSICAL', () => 1);
  assert.equal(await codeOf(guest.memory.readBytes(0, 8)), 'E_REPLY');
  assert.equal(await codeOf(guest.memory.readBytes(0, 100 * PAGE_SIZE)), 'E_REPLY');
  assert.equal(await codeOf((async () => guest.memory.write(0, new Uint8Array(1)))()), 'E_REPLY');
});

/** vCPU 0 maps virtual page n to frame `frames[n]`. */
async function withMapping(frames: readonly (number | undefined)[]) {
  const all = await withPages(16);
  all.host.on('VCPU_TRANSLATE_GVA', ({ body: { gva } }) => {
    const frame = gva < 2n ** 32n ? frames[Number(gva >> 12n)] : undefined;
    return { gpa: frame === undefined ? 2 ** 64 : frame * PAGE_SIZE + Number(gva & 0xfffn) };
  });
  return all;
}

test('virtual memory follows the mapping of each page', async () => {
  const { guest, pages } = await withMapping([5, 2, 9, undefined]);
  const { memory } = guest.vcpus[0]!;
  const bytes = await memory.readBytes(100n, 2 * PAGE_SIZE);
  const page = (n: number) => pages.bytes.slice(n * PAGE_SIZE, (n + 1) * PAGE_SIZE);
  const expected = Buffer.concat([page(5), page(2), page(9)]).subarray(100, 100 + 2 * PAGE_SIZE);
  assert.deepEqual(Buffer.from(bytes), expected);
  assert.equal(await memory.u64(4092n), expected.readBigUInt64LE(3992));
  assert.equal(await memory.write(4094n, Uint8Array.of(1, 2, 3, 4)), true);
  assert.deepEqual(pages.bytes.slice(6 * PAGE_SIZE - 2, 6 * PAGE_SIZE), Uint8Array.of(1, 2));
  assert.deepEqual(pages.bytes.slice(2 * PAGE_SIZE, 2 * PAGE_SIZE + 2), Uint8Array.of(3, 4));
});

test('virtual memory that is not mapped is not read, and not written in part', async () => {
  const { guest, pages } = await withMapping([5, undefined]);
  const { memory } = guest.vcpus[0]!;
  const before = pages.bytes.slice();
  assert.equal(await codeOf(memory.readBytes(4090n, 12)), 'E_NOT_BACKED');
  assert.equal(await codeOf(memory.u64(-8n)), 'E_NOT_BACKED');
  assert.equal(await memory.write(4090n, new Uint8Array(12)), false);
  assert.deepEqual(pages.bytes, before);
});

test('a string ends at its zero byte, on whatever page that is', async () => {
  const { guest, pages } = await withMapping([5, 2, undefined]);
  const { memory } = guest.vcpus[0]!;
  const put = (frame: number, at: number, text: string) =>
    pages.bytes.set(Buffer.from(text), frame * PAGE_SIZE + at);
  put(5, 10, 'größer\0x');
  assert.equal(await memory.readString(10n), 'größer');
  put(5, PAGE_SIZE - 3, 'abc');
  put(2, 0, 'def\0');
  assert.equal(await memory.readString(BigInt(PAGE_SIZE - 3)), 'abcdef');
  put(2, PAGE_SIZE - 2, 'x\0');
  assert.equal(await memory.readString(BigInt(2 * PAGE_SIZE - 2)), 'x', 'the next page is not mapped');
  assert.equal(await memory.readString(BigInt(PAGE_SIZE - 3), 4), 'abcd', 'the limit cuts it');
  put(2, PAGE_SIZE - 2, 'xy');
  assert.equal(await codeOf(memory.readString(BigInt(2 * PAGE_SIZE - 2))), 'E_NOT_BACKED');
});

interface Layout {
  readonly title: string;
  readonly runs: readonly [start: number, end: number][];
}

const layouts: readonly Layout[] = [
  { title: 'nothing', runs: [] },
  { title: 'one page', runs: [[0, PAGE_SIZE]] },
  { title: 'under 1 MiB', runs: [[0, 640 * 1024]] },
  { title: 'exactly 1 MiB', runs: [[0, 2 ** 20]] },
  { title: 'an odd size', runs: [[0, 12_345 * PAGE_SIZE]] },
  { title: '3 GiB', runs: [[0, 3 * GIB]] },
  {
    title: 'a PC with 8 GiB',
    runs: [
      [0, 2 * GIB],
      [4 * GIB, 10 * GIB],
    ],
  },
  {
    title: '4 GiB and a page without a hole',
    runs: [
      [0, 4 * GIB],
      [4 * GIB, 4 * GIB + PAGE_SIZE],
    ],
  },
  {
    title: '1 TiB',
    runs: [
      [0, 3 * GIB],
      [4 * GIB, 1025 * GIB],
    ],
  },
];

for (const { title, runs } of layouts) {
  test(`regions are found by reading: ${title}`, async () => {
    for (const dialect of ['v7', 'v9', 'v12'] as const) {
      const end = runs.at(-1)?.[1] ?? 0;
      const { guest, host } = await hooked({
        dialect,
        hello: { name: '', uuid: new Uint8Array(16), startTime: 0 },
        prepare: (peer) =>
          peer
            .on('VM_READ_PHYSICAL', ({ body: { gpa } }) =>
              runs.some(([from, to]) => gpa >= from && gpa < to) ? { data: new Uint8Array(1) } : 2,
            )
            .on('VM_GET_MAX_GFN', () => ({ gfn: end / PAGE_SIZE })),
      });
      const found = guest.memory.regions.map(({ gpa, size }) => [gpa, gpa + size]);
      assert.deepEqual(found, runs, dialect);
      assert.ok(host.got('VM_READ_PHYSICAL').length < 500, 'too many reads');
    }
  });
}

test('a host that lets nobody read has no regions', async () => {
  const hello = { name: '', uuid: new Uint8Array(16), startTime: 0 };
  const { guest } = await hooked({ hello, prepare: (host) => host.on('VM_READ_PHYSICAL', () => 1) });
  assert.deepEqual(guest.memory.regions, []);
});

test('regions come from the memory map when there is one: whole pages of memory, in order', async () => {
  const { guest, host } = await hooked({
    memoryMap: [
      { address: 4 * GIB, length: GIB, type: 1 },
      { address: 0, length: 0x9fc00, type: 1 },
      { address: 0x9fc00, length: 0x400, type: 2 },
      { address: 0x100000, length: GIB + 1, type: 1 },
      { address: 0x200000, length: 0x1000, type: 1 },
      { address: 2 * GIB + 100, length: 4095, type: 1 },
      { address: 2 ** 63, length: 2 ** 62, type: 1 },
    ],
  });
  assert.deepEqual(guest.memory.regions, [
    { gpa: 0, size: 0x9f000, readonly: false },
    { gpa: 0x100000, size: GIB, readonly: false },
    { gpa: 4 * GIB, size: GIB, readonly: false },
  ]);
  assert.equal(host.got('VM_READ_PHYSICAL').length, 0);
});

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { cpuTime } from '../../test/kit/cpu-time.ts';
import { later } from '../../test/kit/memory.ts';
import { DIRECT_MAP, SyntheticLinux } from '../../test/kit/synthetic-linux.ts';
import { isPending } from '../awaitable.ts';
import { KvmiError } from '../error.ts';
import { Linux, type Process, printable, type Rows } from './index.ts';

/** Synchronous memory gives synchronous answers. */
function now<T>(value: T | PromiseLike<T>): T {
  assert.ok(!isPending(value), 'the answer is there at once');
  return value;
}

function find(guest: SyntheticLinux): Linux {
  return now(Linux.find(guest.memory, { cache: false }));
}

function processes(guest: SyntheticLinux, options = {}): Rows<Process> {
  return now(find(guest).processes(options));
}

describe('a synthetic guest', () => {
  test('is found, and its processes are listed', async () => {
    const guest = new SyntheticLinux();
    const linux = find(guest);
    assert.equal(linux.kernel.release, '6.9.0-synthetic');
    const { rows } = now(linux.processes());
    assert.deepEqual(
      rows.map(({ pid, ppid, comm }) => [pid, ppid, comm]),
      [
        [1, 0, 'init'],
        [2, 0, 'task 2'],
        [3, 0, 'task 3'],
        [4, 0, 'task 4'],
        [5, 0, 'task 5'],
      ],
    );
    const slow = await Linux.find(later(guest.memory), { cache: false });
    assert.deepEqual((await slow.processes()).rows, rows);
  });

  test('is not found in empty memory', () => {
    const guest = new SyntheticLinux();
    guest.bytes.fill(0);
    assert.throws(() => find(guest), { code: 'E_NO_LINUX' });
  });

  test('is found behind pages that only look like VMCOREINFO', () => {
    const guest = new SyntheticLinux();
    const forged = [
      'OSRELEASE=6.6.6\nSYMBOL(swapper_pg_dir)=ffffffff80000000\nNUMBER(phys_base)=0\n',
      'OSRELEASE=6.6.6\nSYMBOL(swapper_pg_dir)=ffffffffffffffff\nNUMBER(phys_base)=-9999999999999999999\n',
      'OSRELEASE=\nSYMBOL(=\nNUMBER(phys_base)=zero\n',
      `OSRELEASE=${'x'.repeat(4086)}`,
    ];
    for (const [i, text] of forged.entries()) guest.bytes.write(text, 0x50_0000 + i * 4096);
    assert.equal(find(guest).kernel.release, '6.9.0-synthetic');
  });
});

describe('a list of tasks', () => {
  test('that goes in a circle ends, and is partial', () => {
    const guest = new SyntheticLinux();
    const third = guest.member(guest.tasks[3]!, 'tasks');
    guest.pointer(third, DIRECT_MAP + BigInt(guest.member(guest.tasks[1]!, 'tasks')));
    const { rows, partial, reasons } = processes(guest);
    assert.deepEqual(
      rows.map(({ pid }) => pid),
      [1, 2, 3],
    );
    assert.equal(partial, true);
    assert.match(reasons.join(), /goes in a circle/);
  });

  test('that leads nowhere ends, and is partial', () => {
    for (const pointer of [
      0n,
      8n,
      0xffff_ffff_ffff_fff8n,
      0xdead_0000_0000_0100n,
      DIRECT_MAP + (1n << 40n),
    ]) {
      const guest = new SyntheticLinux();
      guest.pointer(guest.member(guest.tasks[3]!, 'tasks'), pointer);
      const { rows, partial } = processes(guest);
      assert.deepEqual(
        rows.map(({ pid }) => pid),
        [1, 2, 3],
        `0x${pointer.toString(16)}`,
      );
      assert.equal(partial, true);
    }
  });

  test('without end is cut at the limit', () => {
    const guest = new SyntheticLinux(3000);
    const { rows, partial, reasons } = processes(guest, { limit: 1000 });
    assert.equal(rows.length, 1000);
    assert.equal(partial, true);
    assert.match(reasons.join(), /more than 1000/);
  });

  test('is cut when the time is up', () => {
    const guest = new SyntheticLinux(3000);
    const { partial, reasons } = processes(guest, { timeoutMs: 0 });
    assert.equal(partial, true);
    assert.match(reasons.join(), /time/);
  });

  test('a task whose pointers lead nowhere is named, and the others are listed', () => {
    const guest = new SyntheticLinux();
    guest.pointer(guest.member(guest.tasks[2]!, 'real_cred'), 0x4141_4141_4141_4141n);
    guest.pointer(guest.member(guest.tasks[3]!, 'signal'), 0n);
    guest.pointer(guest.member(guest.tasks[4]!, 'mm'), DIRECT_MAP + (1n << 45n));
    const { rows, partial, reasons } = processes(guest);
    assert.deepEqual(
      rows.map(({ pid }) => pid),
      [1, 3, 4, 5],
    );
    assert.equal(partial, true);
    assert.match(reasons.join('\n'), /process 2: /);
  });

  test('names of any bytes are text, and can be made printable', () => {
    const guest = new SyntheticLinux();
    guest.bytes.set(
      [0xff, 0xfe, 0x1b, 0x5b, 0x32, 0x4a, 0x0a, 0xe2, 0x80, 0xae, 0x41, 0, 0x42],
      guest.member(guest.tasks[1]!, 'comm'),
    );
    const comm = processes(guest).rows[0]!.comm;
    assert.equal(comm, '\ufffd\ufffd\u001b[2J\n\u202eA');
    assert.equal(printable(comm), '\ufffd\ufffd\\x1b[2J\\x0a\\u202eA');
  });
});

const QUERY_MS = 500;

describe('a hostile guest', () => {
  test('whatever bytes it changes: an answer or a KvmiError, soon', () => {
    const pristine = new SyntheticLinux(30);
    const interesting = [
      0n,
      1n,
      (1n << 63n) - 1n,
      1n << 63n,
      (1n << 64n) - 1n,
      DIRECT_MAP,
      DIRECT_MAP + 0x80_0000n,
      0xffff_ffff_8000_0000n,
    ];
    const place = fc.oneof(
      fc.nat(0x5fff),
      fc.integer({ min: 0x10000, max: 0x12fff }),
      fc.integer({ min: 0x20_0000, max: 0x20_a000 }),
      fc.integer({ min: 0x40_0000, max: 0x40_0c00 }),
      fc.integer({ min: 0x60_0000, max: 0x60_0400 }),
      fc.integer({ min: 0x80_0000, max: 0x80_8000 }),
    );
    const value = fc.oneof(fc.constantFrom(...interesting), fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }));
    const changes = fc.array(fc.tuple(place, value), { minLength: 1, maxLength: 30 });
    fc.assert(
      fc.property(changes, (list) => {
        const guest = new SyntheticLinux(0);
        guest.bytes.set(pristine.bytes);
        for (const [at, bytes] of list) guest.bytes.writeBigUInt64LE(bytes, at);
        const start = cpuTime();
        try {
          const linux = find(guest);
          const limits = { timeoutMs: QUERY_MS };
          for (const rows of [
            linux.processes(limits),
            linux.threads(undefined, limits),
            linux.files(undefined, limits),
            linux.print('init_task'),
            linux.check({}, limits),
          ])
            assert.ok(Array.isArray(now(rows).rows));
        } catch (error) {
          if (!(error instanceof KvmiError)) throw error;
        }
        assert.ok(cpuTime() - start < 5000, 'it takes no longer');
      }),
      // Two words of damage that once made a walk endless.
      {
        numRuns: 150,
        examples: [
          [
            [
              [0x40_027e, 0n],
              [0x1_000e, 0n],
            ],
          ],
        ],
      },
    );
  });

  test('memory that changes with every read: an answer or a KvmiError', () => {
    const guest = new SyntheticLinux(30);
    const linux = find(guest);
    let reads = 0;
    const shifting = {
      regions: guest.memory.regions,
      write: () => false,
      read: (gpa: number, into: Uint8Array) => {
        const backed = guest.memory.read(gpa, into) === true;
        if (reads++ % 3 === 0)
          for (let i = reads % 61; i < into.length; i += 61) into[i] = (into[i]! + reads) & 0xff;
        return backed;
      },
    };
    const kernel = Object.assign(Object.create(Object.getPrototypeOf(linux.kernel)), linux.kernel, {
      memory: shifting,
    });
    const moving = Object.assign(Object.create(Linux.prototype), { kernel }) as Linux;
    for (let i = 0; i < 50; i++) assert.ok(now(moving.processes({ timeoutMs: 1000 })).rows.length <= 1000);
  });

  test('page tables that name themselves end every walk', () => {
    const guest = new SyntheticLinux();
    for (let i = 256; i < 512; i++) guest.pointer(0x1000 + 8 * i, 0x1003n);
    assert.throws(() => find(guest), KvmiError);
  });
});

import assert from 'node:assert/strict';
import {
  existsSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { deflateSync } from 'node:zlib';
import fc from 'fast-check';
import { getRegister, putRegister, STATE_SIZE } from '../../abi/state.ts';
import { KvmiError } from '../../error.ts';
import {
  bytesBackend,
  CAPABILITY_NAMES,
  CapabilityError,
  type PhysicalMemory,
  RegionMemory,
  type Vcpu,
} from '../../machine/index.ts';
import { type DumpOptions, dumpMemory, manifestPath, openSnapshot, verifyDump } from './index.ts';

const PAGE = 4096;
const MEBIBYTE = 1 << 20;

let directory: string;
before(() => {
  directory = mkdtempSync(join(tmpdir(), 'kvmi-snapshot-'));
});
after(() => rmSync(directory, { recursive: true }));

let count = 0;
function fresh(): string {
  return join(directory, `dump-${count++}`);
}

/** Two regions with a hole between them; most of the first one is zeros. */
function memory(): RegionMemory {
  const low = new Uint8Array(10 * MEBIBYTE);
  for (let i = 0; i < 2 * PAGE; i++) low[6 * MEBIBYTE + i] = i * 7 + 1;
  low[low.length - 1] = 0xee;
  const high = Uint8Array.from({ length: 5 * PAGE }, (_, i) => i % 251);
  return new RegionMemory([
    { gpa: 0, size: low.length, readonly: false, backend: bytesBackend(low) },
    { gpa: 16 * MEBIBYTE, size: high.length, readonly: false, backend: bytesBackend(high) },
  ]);
}

async function contents(from: PhysicalMemory, gpa: number, size: number): Promise<string> {
  const bytes = new Uint8Array(size);
  assert.ok(await from.read(gpa, bytes), `${size} bytes at 0x${gpa.toString(16)} are there`);
  return Buffer.from(bytes).toString('base64');
}

async function assertSame(actual: PhysicalMemory, expected: PhysicalMemory): Promise<void> {
  for (const [gpa, size] of [
    [0, PAGE],
    [6 * MEBIBYTE - 100, 3 * PAGE],
    [10 * MEBIBYTE - 16, 16],
    [16 * MEBIBYTE, 5 * PAGE],
    [16 * MEBIBYTE + 1, 7],
  ] as const)
    assert.equal(
      await contents(actual, gpa, size),
      await contents(expected, gpa, size),
      `at 0x${gpa.toString(16)}`,
    );
}

function state(rip: bigint): Uint8Array {
  const bytes = Uint8Array.from({ length: STATE_SIZE }, (_, i) => i * 3);
  putRegister(bytes, 'rip', rip);
  return bytes;
}

const FORMATS = ['elf', 'raw', 'lime'] as const;

describe('dumpMemory', () => {
  for (const format of FORMATS) {
    test(`${format}: what was dumped is read back`, async () => {
      const file = fresh();
      const expected = memory();
      const result = await dumpMemory({ memory: expected }, file, { format });
      assert.equal(statSync(file).size, result.size);
      assert.equal(statSync(file).mode & 0o777, 0o600);
      assert.equal(statSync(manifestPath(file)).mode & 0o777, 0o600);
      assert.ok(statSync(file).blocks * 512 < 2 * MEBIBYTE, 'zeros take no room');
      const machine = openSnapshot(file);
      assert.equal(machine.format, format);
      await assertSame(machine.memory, expected);
      if (format !== 'raw') assert.equal(await machine.memory.read(12 * MEBIBYTE, new Uint8Array(1)), false);
      await machine.close();
      assert.deepEqual(await verifyDump(file), []);
    });

    test(`${format}: a changed byte is found by its checksums`, async () => {
      const file = fresh();
      await dumpMemory({ memory: memory() }, file, { format });
      const bytes = readFileSync(file);
      const last = { raw: 10 * MEBIBYTE, elf: bytes.length - 5 * PAGE, lime: bytes.length - 5 * PAGE - 32 };
      const at = last[format] - 1;
      assert.equal(bytes[at], 0xee);
      bytes[at] = 0xef;
      writeFileSync(file, bytes);
      assert.deepEqual(await verifyDump(file), [{ gpa: 8 * MEBIBYTE, size: 2 * MEBIBYTE }]);
    });

    test(`${format}: one that was interrupted goes on where it was`, async () => {
      const file = fresh();
      const abort = new AbortController();
      const onProgress: DumpOptions['onProgress'] = ({ done }) => done >= 4 * MEBIBYTE && abort.abort();
      const first = dumpMemory({ memory: memory() }, file, { format, onProgress, signal: abort.signal });
      await assert.rejects(first, { code: 'E_ABORTED' });
      assert.equal(existsSync(file), false, 'a dump has its name when it is whole');
      const seen: number[] = [];
      const read: number[] = [];
      const expected = memory();
      const watched: PhysicalMemory = {
        regions: expected.regions,
        write: () => false,
        read: (gpa, into) => {
          read.push(gpa);
          return expected.read(gpa, into);
        },
      };
      await dumpMemory({ memory: watched }, file, { format, onProgress: ({ done }) => seen.push(done) });
      assert.ok(!read.includes(0), 'what was written is not read again');
      assert.equal(seen.at(-1), 10 * MEBIBYTE + 5 * PAGE);
      assert.deepEqual(await verifyDump(file), []);
      const machine = openSnapshot(file);
      await assertSame(machine.memory, expected);
      await machine.close();
    });
  }

  test('pages that cannot be read are zeros, and counted', async () => {
    const good = memory();
    const broken: PhysicalMemory = {
      regions: good.regions,
      write: () => false,
      read: (gpa, into) => !(gpa <= 6 * MEBIBYTE && gpa + into.length > 6 * MEBIBYTE) && good.read(gpa, into),
    };
    const file = fresh();
    assert.equal((await dumpMemory({ memory: broken }, file, { format: 'raw' })).unreadable, 1);
    const machine = openSnapshot(file);
    assert.equal(await contents(machine.memory, 6 * MEBIBYTE, 8), Buffer.alloc(8).toString('base64'));
    assert.equal(
      await contents(machine.memory, 6 * MEBIBYTE + PAGE, 8),
      await contents(good, 6 * MEBIBYTE + PAGE, 8),
    );
    await machine.close();
  });

  test('a file that is there is not written over', async () => {
    const file = fresh();
    writeFileSync(file, 'mine');
    await assert.rejects(dumpMemory({ memory: memory() }, file, { format: 'raw' }), { code: 'E_DUMP_FILE' });
    assert.equal(readFileSync(file, 'utf8'), 'mine');
  });
});

describe('a snapshot as a machine', () => {
  test('has the registers of the vCPUs, and says what it cannot do', async () => {
    const file = fresh();
    const states = [state(0xffff_ffff_8100_0000n), state(0x40_1000n)];
    await dumpMemory({ memory: memory() }, file, { format: 'elf', states });
    const machine = openSnapshot(file);
    assert.equal(machine.vcpus.length, 2);
    const into = new Uint8Array(STATE_SIZE);
    machine.vcpus[1]!.readState(into);
    assert.deepEqual(into, states[1]);
    assert.equal(getRegister(into, 'rip'), 0x40_1000n);
    const called: Vcpu[] = [];
    machine.attach({
      stop: () => ({ action: 'continue' }),
      request: (vcpu) => {
        called.push(vcpu);
        return undefined;
      },
      closed() {},
    });
    assert.throws(() => machine.attach({} as never), { code: 'E_BUSY' });
    await machine.vcpus[0]!.request();
    assert.deepEqual(called, [machine.vcpus[0]]);
    for (const name of CAPABILITY_NAMES) {
      const isThere = name === 'registers' || name === 'pause';
      if (isThere) assert.equal(machine.capabilities[name], true);
      else assert.match(String(machine.capabilities[name]), /dump/, name);
    }
    assert.throws(() => machine.arm({ kind: 'breakpoint', vcpu: machine.vcpus[0]! }), CapabilityError);
    assert.throws(() => machine.vcpus[0]!.inject(), CapabilityError);
    assert.equal(await machine.memory.write(0, new Uint8Array(1)), false);
    await machine.close();
  });

  test('without registers it says so', async () => {
    const file = fresh();
    await dumpMemory({ memory: memory() }, file, { format: 'lime' });
    const machine = openSnapshot(file);
    assert.match(String(machine.capabilities.registers), /lime dump has no registers/);
    await machine.close();
  });
});

/** A kdump file of these pages. */
function kdump(pages: ReadonlyMap<number, Uint8Array>, maxPages: number): Buffer {
  const header = Buffer.alloc(PAGE);
  header.write('KDUMP   ', 0, 'latin1');
  header.writeInt32LE(6, 8);
  header.writeInt32LE(PAGE, 428);
  header.writeInt32LE(1, 432);
  header.writeUInt32LE(2, 436);
  header.writeUInt32LE(maxPages, 440);
  const sub = Buffer.alloc(PAGE);
  sub.writeBigUInt64LE(BigInt(maxPages), 96);
  const bitmap = Buffer.alloc(PAGE);
  for (const page of pages.keys()) bitmap[page >> 3] = bitmap[page >> 3]! | (1 << (page & 7));
  const descriptors = Buffer.alloc(24 * pages.size);
  const data: Buffer[] = [];
  let offset = 4 * PAGE + descriptors.length;
  [...pages.entries()]
    .sort(([a], [b]) => a - b)
    .forEach(([, page], i) => {
      const packed = deflateSync(page);
      descriptors.writeBigUInt64LE(BigInt(offset), 24 * i);
      descriptors.writeUInt32LE(packed.length, 24 * i + 8);
      descriptors.writeUInt32LE(1, 24 * i + 12);
      data.push(packed);
      offset += packed.length;
    });
  return Buffer.concat([header, sub, bitmap, bitmap, descriptors, ...data]);
}

/** makedumpfile's flattened form of a file, in pieces written in any order, some twice. */
function flattened(file: Buffer, pieces: readonly (readonly [start: number, end: number])[]): Buffer {
  const header = Buffer.alloc(PAGE);
  header.write('makedumpfile', 0, 'latin1');
  const parts = pieces.map(([start, end]) => {
    const piece = Buffer.alloc(16);
    piece.writeBigInt64BE(BigInt(start), 0);
    piece.writeBigInt64BE(BigInt(end - start), 8);
    return Buffer.concat([piece, file.subarray(start, end)]);
  });
  return Buffer.concat([header, ...parts, Buffer.alloc(16, 0xff)]);
}

describe('kdump', () => {
  const pages = new Map([3, 4, 700, 1999].map((page) => [page, new Uint8Array(PAGE).fill(page & 0xff)]));
  const whole = kdump(pages, 2000);

  test('compressed pages are read, others are not there', async () => {
    const half = whole.length >> 1;
    const files = [
      whole,
      flattened(whole, [
        [half, whole.length],
        [0, half + 100],
        [0, PAGE],
      ]),
    ];
    for (const bytes of files) {
      const file = fresh();
      writeFileSync(file, bytes);
      const machine = openSnapshot(file);
      assert.equal(machine.format, 'kdump');
      for (const [page, expected] of pages)
        assert.equal(
          await contents(machine.memory, page * PAGE, PAGE),
          Buffer.from(expected).toString('base64'),
        );
      const across = new Uint8Array(2 * PAGE);
      assert.equal(await machine.memory.read(3 * PAGE, across), true);
      assert.deepEqual([across[0], across[PAGE]], [3, 4]);
      assert.equal(await machine.memory.read(5 * PAGE, new Uint8Array(1)), false);
      await machine.close();
    }
  });
});

describe('a damaged dump', () => {
  test('of any format and any damage: a machine or a KvmiError, soon', async () => {
    const files: Buffer[] = [kdump(new Map([[1, new Uint8Array(PAGE).fill(9)]]), 100)];
    files.push(flattened(files[0]!, [[0, files[0]!.length]]));
    for (const format of FORMATS) {
      const file = fresh();
      await dumpMemory({ memory: memory() }, file, { format, states: [state(1n)] });
      files.push(readFileSync(file).subarray(0, 3 * PAGE));
    }
    const change = fc.tuple(fc.nat(700), fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }));
    const file = fresh();
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom(...files),
        fc.array(change, { maxLength: 8 }),
        fc.nat(3 * PAGE),
        async (pristine, changes, length) => {
          const bytes = Buffer.from(pristine);
          for (const [at, value] of changes) bytes.writeBigUInt64LE(value, at);
          writeFileSync(file, bytes.subarray(0, Math.max(1, length)));
          const start = performance.now();
          try {
            const machine = openSnapshot(file);
            for (const { gpa, size } of machine.memory.regions.slice(0, 50))
              await machine.memory.read(gpa, new Uint8Array(Math.min(size, PAGE)));
            await machine.close();
          } catch (error) {
            if (!(error instanceof KvmiError)) throw error;
          }
          assert.ok(performance.now() - start < 2000);
        },
      ),
      { numRuns: 300 },
    );
  });

  test('that is cut off says so', async () => {
    const file = fresh();
    await dumpMemory({ memory: memory() }, file, { format: 'lime' });
    truncateSync(file, 12);
    assert.throws(() => openSnapshot(file), { code: 'E_DUMP_DAMAGED' });
    assert.throws(() => openSnapshot(join(directory, 'none')), { code: 'E_DUMP_FILE' });
  });
});

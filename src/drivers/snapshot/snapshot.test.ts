import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { deflateSync } from 'node:zlib';
import fc from 'fast-check';
import { contents, dumpedMemory, stateAt } from '../../../test/kit/dump-memory.ts';
import { getRegister, STATE_SIZE } from '../../abi/state.ts';
import { KvmiError } from '../../error.ts';
import { CAPABILITY_NAMES, CapabilityError, type Vcpu } from '../../machine/index.ts';
import { dumpMemory, openSnapshot } from './index.ts';

const PAGE = 4096;

let directory: string;
before(() => {
  directory = mkdtempSync(join(tmpdir(), 'kvmi-snapshot-'));
});
after(() => rmSync(directory, { recursive: true }));

let count = 0;
function fresh(): string {
  return join(directory, `dump-${count++}`);
}

const FORMATS = ['elf', 'raw', 'lime'] as const;

describe('a snapshot as a machine', () => {
  test('has the registers of the vCPUs, and says what it cannot do', async () => {
    const file = fresh();
    const states = [stateAt(0xffff_ffff_8100_0000n), stateAt(0x40_1000n)];
    await dumpMemory({ memory: dumpedMemory() }, file, { format: 'elf', states });
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
    await dumpMemory({ memory: dumpedMemory() }, file, { format: 'lime' });
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
      await dumpMemory({ memory: dumpedMemory() }, file, { format, states: [stateAt(1n)] });
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
    await dumpMemory({ memory: dumpedMemory() }, file, { format: 'lime' });
    truncateSync(file, 12);
    assert.throws(() => openSnapshot(file), { code: 'E_DUMP_DAMAGED' });
    assert.throws(() => openSnapshot(join(directory, 'none')), { code: 'E_DUMP_FILE' });
  });
});

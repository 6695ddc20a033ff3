import assert from 'node:assert/strict';
import {
  closeSync,
  ftruncateSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import fc from 'fast-check';
import { cpuTime } from '../../../test/kit/cpu-time.ts';
import { dumpedMemory, stateAt } from '../../../test/kit/dump-memory.ts';
import { flattened, kdump } from '../../../test/kit/kdump-file.ts';
import { KvmiError } from '../../error.ts';
import { bytesBackend, RegionMemory } from '../../machine/index.ts';
import { type DumpOptions, dumpMemory, openSnapshot } from './index.ts';

/* Whatever a file holds: a machine or a KvmiError, soon, and never wrong bytes out of a file that is cut off. */

const PAGE = 4096;
const SOON_MS = 2000;
/** For a file that claims terabytes. */
const LATER_MS = 10_000;

let directory: string;
before(() => {
  directory = mkdtempSync(join(tmpdir(), 'kvmi-hostile-'));
});
after(() => rmSync(directory, { recursive: true }));

const KINDS: readonly DumpOptions[] = (['elf', 'raw', 'lime'] as const).flatMap((format) => [
  { format },
  { format, compression: 'zstd' },
]);

let count = 0;
async function dumpOf(memory: RegionMemory, kind: DumpOptions): Promise<Buffer> {
  const file = join(directory, `dump-${count++}`);
  await dumpMemory({ memory }, file, { ...kind, states: [stateAt(1n)] });
  return readFileSync(file);
}

/** Reads what the machine in a file has, up to a bound. Undefined when it is refused. */
async function read(file: string, limit = SOON_MS): Promise<Map<number, Uint8Array> | undefined> {
  const start = cpuTime();
  const pages = new Map<number, Uint8Array>();
  try {
    const machine = openSnapshot(file);
    for (const { gpa, size } of machine.memory.regions.slice(0, 50)) {
      for (let at = 0; at < Math.min(size, 8 * PAGE); at += PAGE) {
        const page = new Uint8Array(PAGE);
        if (await machine.memory.read(gpa + at, page)) pages.set(gpa + at, page);
      }
    }
    await machine.close();
    return pages;
  } catch (error) {
    if (!(error instanceof KvmiError)) throw error;
    return undefined;
  } finally {
    assert.ok(cpuTime() - start < limit, 'it is answered soon');
  }
}

function smallMemory(): RegionMemory {
  const bytes = (first: number) => Uint8Array.from({ length: 2 * PAGE }, (_, i) => 1 + ((i * first) % 255));
  return new RegionMemory([
    { gpa: 0, size: 2 * PAGE, readonly: false, backend: bytesBackend(bytes(3)) },
    { gpa: 4 * PAGE, size: 2 * PAGE, readonly: false, backend: bytesBackend(bytes(5)) },
  ]);
}

describe('a file that is cut off', () => {
  const packed = (flag: number) => kdump(new Map([[1, new Uint8Array(PAGE).fill(9)]]), 100, flag);
  const kdumps = new Map([
    ['kdump', packed(1)],
    ['kdump, flattened', flattened(packed(1), [[0, packed(1).length]])],
  ]);
  for (const kind of KINDS) {
    test(`at any byte: ${kind.format} ${kind.compression ?? ''}`, async () => {
      await cutAnywhere(await dumpOf(smallMemory(), kind), kind.format === 'raw');
    });
  }
  for (const [name, bytes] of kdumps) test(`at any byte: ${name}`, () => cutAnywhere(bytes, false));
});

/** A raw dump does not say how long it is: its last page is filled up with zeros. */
async function cutAnywhere(whole: Buffer, isRaw: boolean): Promise<void> {
  const file = join(directory, 'cut');
  writeFileSync(file, whole);
  const expected = await read(file);
  assert.ok(expected !== undefined && expected.size > 0, 'the whole file is read');
  for (let length = 0; length < whole.length; length += length < 256 || length > whole.length - 64 ? 1 : 97) {
    writeFileSync(file, whole.subarray(0, length));
    const pages = await read(file);
    for (const [gpa, page] of pages ?? []) {
      const complete = isRaw ? Math.min(PAGE, length - gpa) : PAGE;
      const wanted: Uint8Array | undefined = expected.get(gpa)?.subarray(0, complete);
      assert.deepEqual(page.subarray(0, complete), wanted, `cut at ${length}, page at ${gpa}`);
    }
  }
}

describe('a file that was made to do harm', () => {
  test('fields with any value', async () => {
    const files: Buffer[] = [];
    for (const flag of [0, 1, 2, 4, 0x20])
      files.push(kdump(new Map([[1, new Uint8Array(PAGE).fill(9)]]), 100, flag));
    files.push(flattened(files[0]!, [[0, files[0]!.length]]));
    for (const kind of KINDS) files.push((await dumpOf(dumpedMemory(), kind)).subarray(0, 12 << 10));
    for (const format of ['elf', 'raw', 'lime'] as const)
      files.push(await dumpOf(smallMemory(), { format, compression: 'zstd' }));
    const value = fc.oneof(
      fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }),
      fc.constantFrom(0n, 1n, 0xffffn, 0xffff_ffffn, 1n << 31n, 1n << 52n, 1n << 63n, (1n << 64n) - 1n),
      fc.bigInt({ min: 0n, max: 8192n }),
    );
    const change = fc.tuple(fc.nat(700), fc.boolean(), value);
    const file = join(directory, 'changed');
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom(...files),
        fc.array(change, { maxLength: 8 }),
        fc.nat(3 * PAGE),
        fc.boolean(),
        async (pristine, changes, length, isCut) => {
          const bytes = Buffer.from(pristine);
          for (const [at, fromEnd, number] of changes) {
            const place = at % (bytes.length - 8);
            bytes.writeBigUInt64LE(number, fromEnd ? bytes.length - 8 - place : place);
          }
          writeFileSync(file, isCut ? bytes.subarray(0, Math.max(1, length)) : bytes);
          await read(file);
        },
      ),
      { numRuns: 600 },
    );
  });

  test('an ELF file with tens of thousands of overlapping segments and notes', async () => {
    const file = join(directory, 'many.elf');
    const programs = 60_000;
    const header = Buffer.alloc(64 + 56 * programs);
    header.set(Buffer.from('\x7fELF\x02\x01\x01', 'latin1'));
    header.writeUInt16LE(4, 16);
    header.writeUInt16LE(62, 18);
    header.writeBigUInt64LE(64n, 32);
    header.writeUInt16LE(56, 54);
    header.writeUInt16LE(programs, 56);
    for (let i = 0; i < programs; i++) {
      const at = 64 + 56 * i;
      header.writeUInt32LE(i % 2 === 0 ? 1 : 4, at);
      // Each one starts a page later and reaches over all that follow; notes are 64 MiB of empty ones.
      header.writeBigUInt64LE(0n, at + 8);
      header.writeBigUInt64LE(BigInt(PAGE * i), at + 24);
      header.writeBigUInt64LE(1n << 26n, at + 32);
      header.writeBigUInt64LE(1n << 40n, at + 40);
    }
    writeSparse(file, header, 1 << 27);
    assert.ok((await read(file)) !== undefined);
  });

  test('a kdump file whose bitmaps are as large as can be', async () => {
    const file = join(directory, 'large.kdump');
    const header = kdump(new Map([[1, new Uint8Array(PAGE)]]), 2 ** 31, 1);
    header.writeUInt32LE(2 ** 16, 436);
    writeSparse(file, header.subarray(0, 2 * PAGE), 2 ** 29);
    assert.equal(await read(file, LATER_MS), undefined, 'it holds no memory');
    header.writeUInt32LE(0xffff_ffff, 436);
    writeSparse(file, header.subarray(0, 2 * PAGE), 2 ** 40);
    assert.equal(await read(file), undefined);
  });

  test('a LiME file whose ranges are all the same, and one that never ends', async () => {
    const file = join(directory, 'same.lime');
    const one = Buffer.alloc(32 + 16);
    one.writeUInt32LE(0x4c694d45, 0);
    one.writeUInt32LE(1, 4);
    one.writeBigUInt64LE(0n, 8);
    one.writeBigUInt64LE(15n, 16);
    writeFileSync(file, Buffer.concat(Array<Buffer>(100_000).fill(one)));
    assert.equal((await read(file))?.size, 1);
    one.writeBigUInt64LE((1n << 64n) - 2n, 16);
    writeFileSync(file, one);
    assert.equal(await read(file), undefined);
  });

  test('a packed file whose parts unpack to far more than they say', async () => {
    const whole = await dumpOf(smallMemory(), { format: 'raw', compression: 'zstd' });
    const file = join(directory, 'bomb.zst');
    const frames = whole.readUInt32LE(whole.length - 9);
    const table = whole.length - 9 - 8 * frames;
    for (let i = 0; i < frames; i++) whole.writeUInt32LE(16 << 20, table + 8 * i + 4);
    writeFileSync(file, whole);
    assert.equal((await read(file))?.size ?? 0, 0, 'nothing is read from it');
  });
});

function writeSparse(file: string, start: Uint8Array, size: number): void {
  const fd = openSync(file, 'w');
  writeSync(fd, start);
  ftruncateSync(fd, size);
  closeSync(fd);
}

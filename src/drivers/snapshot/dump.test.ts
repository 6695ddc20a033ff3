import assert from 'node:assert/strict';
import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import {
  appendFileSync,
  existsSync,
  linkSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { assertSameMemory, contents, dumpedMemory, stateAt } from '../../../test/kit/dump-memory.ts';
import type { PhysicalMemory } from '../../machine/index.ts';
import {
  type DumpOptions,
  dumpMemory,
  manifestPath,
  openSnapshot,
  partialPath,
  verifyDump,
} from './index.ts';

const PAGE = 4096;
const MEBIBYTE = 1 << 20;
const FORMATS = ['elf', 'raw', 'lime'] as const;
const COMPRESSIONS = [undefined, 'zstd'] as const;

let directory: string;
before(() => {
  directory = mkdtempSync(join(tmpdir(), 'kvmi-dump-'));
});
after(() => rmSync(directory, { recursive: true }));

let count = 0;
function fresh(): string {
  return join(directory, `dump-${count++}`);
}

function hasProgram(name: string): boolean {
  try {
    execFileSync(name, ['--version'], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
}

/** Every format as it is and packed. */
const KINDS = FORMATS.flatMap((format) =>
  COMPRESSIONS.map((compression): DumpOptions => ({ format, ...(compression && { compression }) })),
);

for (const kind of KINDS) {
  const { format, compression } = kind;
  describe(`dumpMemory: ${format}${compression === undefined ? '' : `, packed with ${compression}`}`, () => {
    test('what was dumped is read back', async () => {
      const file = fresh();
      const expected = dumpedMemory();
      const result = await dumpMemory({ memory: expected }, file, kind);
      assert.equal(statSync(file).size, result.size);
      assert.equal(statSync(file).mode & 0o777, 0o600);
      assert.equal(statSync(manifestPath(file)).mode & 0o777, 0o600);
      assert.ok(statSync(file).blocks * 512 < 2 * MEBIBYTE, 'zeros take no room');
      assert.deepEqual([result.resumed, result.unreadable], [false, 0]);
      const machine = openSnapshot(file);
      assert.equal(machine.format, format);
      await assertSameMemory(machine.memory, expected);
      if (format !== 'raw') assert.equal(await machine.memory.read(12 * MEBIBYTE, new Uint8Array(1)), false);
      await machine.close();
      assert.deepEqual(await verifyDump(file), []);
    });

    test('a changed byte is found by its checksums', async () => {
      const file = fresh();
      await dumpMemory({ memory: dumpedMemory() }, file, kind);
      const bytes = readFileSync(file);
      if (compression === undefined) {
        const last = { raw: 10 * MEBIBYTE, elf: bytes.length - 5 * PAGE, lime: bytes.length - 5 * PAGE - 32 };
        const at = last[format] - 1;
        assert.equal(bytes[at], 0xee);
        bytes[at] = 0xef;
        writeFileSync(file, bytes);
        assert.deepEqual(await verifyDump(file), [{ gpa: 8 * MEBIBYTE, size: 2 * MEBIBYTE }]);
      } else {
        const high = bytes.indexOf(Buffer.from(Array.from({ length: 64 }, (_, i) => i + 100)));
        assert.ok(high > 0);
        bytes[high]!++;
        writeFileSync(file, bytes);
        assert.deepEqual(await verifyDump(file), [{ gpa: 16 * MEBIBYTE, size: 5 * PAGE }]);
        const machine = openSnapshot(file);
        assert.equal(
          await machine.memory.read(16 * MEBIBYTE, new Uint8Array(8)),
          false,
          'nothing wrong is read',
        );
        await machine.close();
      }
    });

    test('one that was interrupted goes on where it was', async () => {
      const file = fresh();
      const abort = new AbortController();
      const onProgress: DumpOptions['onProgress'] = ({ done }) => done >= 4 * MEBIBYTE && abort.abort();
      const first = dumpMemory({ memory: dumpedMemory() }, file, {
        ...kind,
        onProgress,
        signal: abort.signal,
      });
      await assert.rejects(first, { code: 'E_ABORTED' });
      assert.equal(existsSync(file), false, 'a dump has its name when it is whole');
      // As if it had been killed in the middle of a record.
      appendFileSync(manifestPath(partialPath(file)), '{"checksums":[1,2');
      const seen: number[] = [];
      const read: number[] = [];
      const expected = dumpedMemory();
      const watched: PhysicalMemory = {
        regions: expected.regions,
        write: () => false,
        read: (gpa, into) => {
          read.push(gpa);
          return expected.read(gpa, into);
        },
      };
      const result = await dumpMemory({ memory: watched }, file, {
        ...kind,
        onProgress: ({ done }) => seen.push(done),
      });
      assert.equal(result.resumed, true);
      assert.ok(!read.includes(0), 'what was written is not read again');
      assert.equal(seen.at(-1), 10 * MEBIBYTE + 5 * PAGE);
      assert.equal(existsSync(partialPath(file)), false);
      assert.equal(existsSync(manifestPath(partialPath(file))), false);
      assert.deepEqual(await verifyDump(file), []);
      const machine = openSnapshot(file);
      await assertSameMemory(machine.memory, expected);
      await machine.close();
    });

    test('one that was killed, at any place and again and again, goes on and is whole', async () => {
      const file = fresh();
      for (let generation = 0; ; generation++) {
        const lines = generation < 6 ? 1 + Math.floor(Math.random() * 40) : Number.POSITIVE_INFINITY;
        if (await ends(dumpProcess(file, kind, generation), lines)) break;
      }
      assert.deepEqual(await verifyDump(file), []);
      const machine = openSnapshot(file);
      const place = new Uint8Array(2);
      assert.ok(await machine.memory.read(MEBIBYTE - 1, place));
      await machine.close();
    });
  });
}

function dumpScript(): string {
  return join(import.meta.dirname, '..', '..', '..', 'test', 'kit', 'dump-process.js');
}

function dumpProcess(file: string, { format, compression }: DumpOptions, generation: number): ChildProcess {
  const args = [dumpScript(), file, format, compression ?? '', String(generation)];
  return spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] });
}

/** Kills the process after so many lines. Whether it ended before. */
async function ends(child: ChildProcess, lines: number): Promise<boolean> {
  let seen = '';
  child.stdout!.on('data', (chunk: Buffer) => {
    seen += chunk.toString('latin1');
    if (seen.split('\n').length > lines) child.kill('SIGKILL');
  });
  const [code] = (await once(child, 'close')) as [number | null];
  assert.ok(code === null || code === 0, `the dump failed: ${code}`);
  return seen.includes('end');
}

describe('dumpMemory', () => {
  test('a dump that is packed is unpacked by zstd to what it would be otherwise', {
    skip: !hasProgram('zstd') && 'zstd is not installed',
  }, async () => {
    for (const format of FORMATS) {
      const [plain, packed] = [fresh(), fresh()];
      const options = { format, states: [stateAt(5n)] };
      await dumpMemory({ memory: dumpedMemory() }, plain, options);
      await dumpMemory({ memory: dumpedMemory() }, packed, { ...options, compression: 'zstd' });
      execFileSync('zstd', ['-tq', packed]);
      const unpacked = execFileSync('zstd', ['-dqc', packed], { maxBuffer: 64 * MEBIBYTE });
      assert.ok(unpacked.equals(readFileSync(plain)), format);
    }
  });

  test('zeros that were something else when the dump was interrupted are zeros', async () => {
    for (const format of FORMATS) {
      const file = fresh();
      await dumpMemory({ memory: dumpedMemory() }, file, { format });
      // As a kill leaves it: all is written, nothing of it is recorded.
      const whole = readFileSync(manifestPath(file), 'utf8');
      const { checksums, unreadable, ...identity } = JSON.parse(whole);
      assert.deepEqual([checksums.length, unreadable], [4, 0]);
      linkSync(file, partialPath(file));
      rmSync(file);
      writeFileSync(manifestPath(partialPath(file)), `${JSON.stringify(identity)}\n`);
      const zeros: PhysicalMemory = {
        regions: dumpedMemory().regions,
        write: () => false,
        read: (_gpa, into) => into.fill(0) !== undefined,
      };
      await dumpMemory({ memory: zeros }, file, { format });
      const machine = openSnapshot(file);
      const empty = Buffer.alloc(PAGE).toString('base64');
      assert.equal(await contents(machine.memory, 6 * MEBIBYTE, PAGE), empty, format);
      await machine.close();
      assert.deepEqual(await verifyDump(file), []);
    }
  });

  test('the dump of another machine or another kind is not gone on with, and not lost', async () => {
    const file = fresh();
    const abort = new AbortController();
    const begin = dumpMemory({ memory: dumpedMemory(), name: 'web' }, file, {
      format: 'elf',
      onProgress: () => abort.abort(),
      signal: abort.signal,
    });
    await assert.rejects(begin, { code: 'E_ABORTED' });
    const begun = readFileSync(partialPath(file));
    const others: [string, DumpOptions][] = [
      ['db', { format: 'elf' }],
      ['web', { format: 'lime' }],
      ['web', { format: 'elf', compression: 'zstd' }],
      ['web', { format: 'elf', states: [stateAt(1n), stateAt(2n), stateAt(3n), stateAt(4n), stateAt(5n)] }],
    ];
    for (const [name, options] of others) {
      const other = dumpMemory({ memory: dumpedMemory(), name }, file, options);
      await assert.rejects(other, { code: 'E_OUTPUT_FILE', hint: /--fresh/ }, JSON.stringify(options.format));
      assert.ok(readFileSync(partialPath(file)).equals(begun));
    }
    const anew = await dumpMemory({ memory: dumpedMemory(), name: 'db' }, file, {
      format: 'elf',
      resume: false,
    });
    assert.equal(anew.resumed, false);
    assert.deepEqual(await verifyDump(file), []);
  });

  test('two at a time do not write the same file', async () => {
    const file = fresh();
    const child = dumpProcess(file, { format: 'raw', compression: 'zstd' }, 1);
    await once(child.stdout!, 'data');
    child.kill('SIGSTOP');
    const args = [dumpScript(), file, 'raw', 'zstd', '1'];
    const second = spawnSync(process.execPath, args, { encoding: 'utf8' });
    assert.match(second.stderr, /is being written by process/);
    child.kill('SIGCONT');
    const [code] = await once(child, 'close');
    assert.equal(code, 0);
    assert.deepEqual(await verifyDump(file), []);
  });

  test('a link that somebody put in the place of the unfinished dump is not followed', async () => {
    const file = fresh();
    const victim = fresh();
    writeFileSync(victim, 'mine');
    symlinkSync(victim, partialPath(file));
    await assert.rejects(dumpMemory({ memory: dumpedMemory() }, file, { format: 'raw' }), {
      code: 'E_OUTPUT_FILE',
    });
    await dumpMemory({ memory: dumpedMemory() }, file, { format: 'raw', resume: false });
    assert.equal(readFileSync(victim, 'utf8'), 'mine');
  });

  test('the machine may run on when its memory is copied', async () => {
    const file = fresh();
    let copied = 0;
    let last = 0;
    const expected = dumpedMemory();
    const watched: PhysicalMemory = {
      regions: expected.regions,
      write: () => false,
      read(gpa, into) {
        last = copied;
        return expected.read(gpa, into);
      },
    };
    await dumpMemory({ memory: watched }, file, {
      format: 'elf',
      onCopied: () => {
        copied++;
        assert.equal(existsSync(file), false);
      },
    });
    assert.deepEqual([copied, last], [1, 0]);
  });

  test('pages that cannot be read are zeros, and counted', async () => {
    const good = dumpedMemory();
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

  test('what is there is not written over', async () => {
    for (const name of [(file: string) => file, manifestPath]) {
      const file = fresh();
      writeFileSync(name(file), 'mine');
      await assert.rejects(dumpMemory({ memory: dumpedMemory() }, file, { format: 'raw' }), {
        code: 'E_OUTPUT_FILE',
      });
      assert.equal(readFileSync(name(file), 'utf8'), 'mine');
    }
  });
});

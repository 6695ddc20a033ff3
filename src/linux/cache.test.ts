import assert from 'node:assert/strict';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { SyntheticLinux } from '../../test/kit/synthetic-linux.ts';
import { Linux, type Progress } from './index.ts';

const PLACES = 'vmcoreinfo-places.json';

describe('the cache of kernels', () => {
  let parent: string;
  let cache: string;
  beforeEach(() => {
    parent = mkdtempSync(join(tmpdir(), 'kvmi-cache-'));
    cache = join(parent, 'linux');
  });
  afterEach(() => rmSync(parent, { recursive: true }));

  async function pids(guest: SyntheticLinux): Promise<number[]> {
    const linux = await Linux.find(guest.memory, { cache });
    return (await linux.processes()).rows.map(({ pid }) => pid);
  }

  function file(): string {
    return join(cache, readdirSync(cache)[0]!);
  }

  test('keeps what was decoded, for the owner only', async () => {
    const guest = new SyntheticLinux();
    const expected = await pids(guest);
    assert.deepEqual(readdirSync(cache), ['00112233445566778899aabbccddeeff00112233.kernel', PLACES]);
    assert.equal(statSync(file()).mode & 0o777, 0o600);
    assert.equal(statSync(cache).mode & 0o777, 0o700);
    const before = statSync(file()).mtimeMs;
    assert.deepEqual(await pids(guest), expected);
    assert.equal(statSync(file()).mtimeMs, before, 'it is used, not written again');
    const linux = await Linux.find(guest.memory, { cache });
    assert.equal(linux.symbols.address('function_500'), 0xffff_ffff_8010_0000n + 8000n);
    assert.equal(linux.symbols.lookup(0xffff_ffff_8010_0000n + 8003n)?.name, 'function_500');
    assert.equal((await linux.print('init_task.comm')).rows[0]?.value, 'swapper/0');
  });

  test('that is damaged in any place is built anew', async () => {
    const guest = new SyntheticLinux();
    const expected = await pids(guest);
    const good = readFileSync(file());
    for (let at = 0; at < good.length; at += 997) {
      const bytes = Buffer.from(good);
      bytes[at] = bytes[at]! ^ 0x55;
      writeFileSync(file(), bytes);
      assert.deepEqual(await pids(guest), expected, `byte ${at}`);
      assert.ok(readFileSync(file()).equals(good), `byte ${at}: the damaged file was replaced`);
    }
    for (const size of [0, 10, 100, good.length - 1]) {
      writeFileSync(file(), good.subarray(0, size));
      assert.deepEqual(await pids(guest), expected, `${size} bytes`);
    }
  });

  test('of another kernel that claims the same build id is not used', async () => {
    const liar = new SyntheticLinux();
    await pids(liar);
    const guest = new SyntheticLinux();
    // The same build id and banner, but tables of symbols that differ in one byte of a name.
    const at = guest.bytes.indexOf('function_', 0x20_0000);
    assert.ok(at > 0x20_0000);
    guest.bytes.write('FU', at);
    const linux = await Linux.find(guest.memory, { cache });
    assert.ok(
      [...linux.symbols].some(({ name }) => name.startsWith('FUnction_')),
      'its own symbols are used',
    );
  });

  test('that cannot be written does no harm', async () => {
    writeFileSync(cache, 'a file, no directory');
    assert.deepEqual(await pids(new SyntheticLinux()), [1, 2, 3, 4, 5]);
    assert.equal(existsSync(cache), true);
  });

  test('remembers where VMCOREINFO was: it is not searched for again', async () => {
    const guest = new SyntheticLinux();
    await pids(guest);
    const steps: Progress[] = [];
    const onProgress = (progress: Progress) => void steps.push(progress);
    await Linux.find(guest.memory, { cache, onProgress });
    assert.deepEqual(steps, []);
    // After the next boot it is elsewhere; what the memory of the former place holds now is not taken for it.
    const moved = new SyntheticLinux();
    const at = moved.bytes.indexOf('OSRELEASE=');
    moved.bytes.copy(moved.bytes, moved.bytes.length - 4096, at, at + 4096);
    moved.bytes.write('OSRELEASE=6.9.0-forged\n\0', at);
    assert.deepEqual(await pids(moved), [1, 2, 3, 4, 5]);
    assert.deepEqual(JSON.parse(readFileSync(join(cache, PLACES), 'utf8')), [moved.bytes.length - 4096, at]);
  });

  test('with remembered places that are none', async () => {
    for (const content of [
      '',
      '{}',
      '[null, -1, 1.5, "0x1000", 9007199254740993, 4097, 1e300]',
      '[['.repeat(9999),
    ]) {
      rmSync(cache, { recursive: true, force: true });
      mkdirSync(cache);
      writeFileSync(join(cache, PLACES), content);
      assert.deepEqual(await pids(new SyntheticLinux()), [1, 2, 3, 4, 5], content.slice(0, 40));
    }
  });
});

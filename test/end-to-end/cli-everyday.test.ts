import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { EXIT } from '../../src/cli/exit-codes.ts';
import { type Ended, kvmi } from '../kit/kvmi-process.ts';
import { SyntheticLinux } from '../kit/synthetic-linux.ts';

/* What people mistype and ask for every day, on a dump of a small Linux that needs no VM. */

const directory = mkdtempSync(join(tmpdir(), 'kvmi-everyday-'));
const dump = join(directory, 'dump');
const VM = `file:${dump}`;
after(() => rmSync(directory, { recursive: true, force: true }));

before(() => {
  const guest = new SyntheticLinux();
  guest.addTask(77, 'twin');
  guest.addTask(78, 'twin');
  writeFileSync(dump, guest.bytes);
});

function run(...args: string[]): Promise<Ended> {
  return kvmi(args, { XDG_CACHE_HOME: directory });
}

interface SymbolRow {
  readonly name: string;
  readonly address: string;
  readonly offset: number;
}

async function rowsOf(...args: string[]): Promise<SymbolRow[]> {
  const { code, stdout, stderr } = await run(...args, '-o', 'json');
  assert.equal(code, EXIT.ok.code, stderr);
  return (JSON.parse(stdout) as { rows: SymbolRow[] }).rows;
}

describe('symbols', { concurrency: 2 }, () => {
  test('an address outside the kernel belongs to no symbol', async () => {
    const [end] = await rowsOf('symbols', VM, '_end');
    const behind = `0x${(BigInt(end!.address) + 4096n).toString(16)}`;
    for (const address of ['0x1000', '0xffffffff00000000', behind, '0xffffffffffffffff']) {
      for (const format of ['table', 'json']) {
        const { code, stdout, stderr } = await run('symbols', VM, address, '-o', format);
        assert.equal(code, EXIT.error.code, address);
        assert.equal(stdout, '');
        assert.match(stderr, /outside the kernel's image \[E_SYMBOL\]\nhint: The image is at 0x/);
      }
    }
  });

  test('an address inside does, with its distance', async () => {
    const [task] = await rowsOf('symbols', VM, 'init_task');
    const inside = `0x${(BigInt(task!.address) + 16n).toString(16)}`;
    const [found] = await rowsOf('symbols', VM, inside);
    assert.deepEqual([found!.name, found!.offset], ['init_task', 16]);
  });

  test('a pattern finds names', async () => {
    const names = (await rowsOf('symbols', VM, 'init_*')).map(({ name }) => name);
    assert.ok(names.includes('init_task') && names.includes('init_pid_ns'), names.join());
    assert.ok(names.every((name) => name.startsWith('init_')));
    assert.deepEqual(
      (await rowsOf('symbols', VM, 'init_tas?')).map(({ name }) => name),
      ['init_task'],
    );
  });

  test('a name that is mistyped is suggested', async () => {
    const { code, stderr } = await run('symbols', VM, 'init_tsk');
    assert.equal(code, EXIT.error.code);
    assert.match(stderr, /\[E_SYMBOL\]\nhint: Did you mean init_task/);
  });
});

describe('processes by name', { concurrency: 2 }, () => {
  test('a name that one process has stands for its id', async () => {
    const byName = await run('threads', VM, 'init', '-o', 'json');
    const byId = await run('threads', VM, '1', '-o', 'json');
    assert.equal(byName.code, EXIT.ok.code, byName.stderr);
    assert.equal(byName.stdout, byId.stdout);
  });

  test('a name of several is refused with their ids, one of none with what is close', async () => {
    const several = await run('maps', VM, 'twin');
    assert.equal(several.code, EXIT.usage.code);
    assert.match(several.stderr, /2 processes called twin: 77, 78 \[E_NO_PROCESS\]/);
    const none = await run('maps', VM, 'inti');
    assert.match(none.stderr, /no process called inti \[E_NO_PROCESS\]\nhint: Did you mean init/);
  });
});

describe('nothing', { concurrency: 2 }, () => {
  test('people are told that there is nothing', async () => {
    assert.match((await run('symbols', VM, 'zzz*')).stderr, /^kvmi: no symbols$/m);
    const { code, stdout, stderr } = await run('ps', VM, '--filter', 'comm=nobody');
    assert.equal(code, EXIT.ok.code);
    assert.equal(stdout, '');
    assert.match(stderr, /^kvmi: none of 7 rows meets comm=nobody$/m);
  });

  test('programs are not', async () => {
    for (const form of [['-q'], ['-o', 'json'], ['-o', 'jsonl'], ['-o', 'csv']]) {
      const { stderr } = await run('symbols', VM, 'zzz*', ...form);
      assert.equal(stderr, '', form.join(' '));
    }
  });
});

describe('whose turn it is', { concurrency: 2 }, () => {
  test('a directory is no dump', async () => {
    const { code, stderr } = await run('ps', `file:${directory}`);
    assert.equal(code, EXIT.noSuchVm.code);
    assert.match(stderr, /it is a directory \[E_DUMP_FILE\]\nhint: /);
    assert.doesNotMatch(stderr, / at .*\(/, 'no stack trace');
  });

  test('a dump that is not there is no VM', async () => {
    const { code } = await run('ps', `file:${directory}/none`);
    assert.equal(code, EXIT.noSuchVm.code);
  });

  const USAGE: readonly (readonly [args: readonly string[], says: RegExp])[] = [
    [['isf', VM, dump], /exists/],
    [['dump', VM, dump], /exists/],
    [['hook', 'embedded:', '--tool', 'tcp:127.0.0.1:1'], /\[E_COOKIE\]/],
    [['ps', VM, '--types', directory], /it is a directory/],
    [['ps', VM, '--types', `${directory}/none`], /ENOENT/],
    [['check', VM, '--vmlinux', dump], /\[E_ELF\]/],
    [['check', VM, '--vmlinux', process.execPath], /\[E_VMLINUX\]/],
    [['pss', 'nc'], /Did you mean ps/],
    [['pss', '--types', 'x'], /Did you mean ps/],
    [['-o', 'json', 'pss', 'nc'], /Did you mean ps/],
  ];
  for (const [args, says] of USAGE) {
    test(`kvmi ${args.map((word) => word.replace(directory, '…')).join(' ')}`, async () => {
      const { code, stdout, stderr } = await run(...args);
      assert.equal(code, EXIT.usage.code, stderr);
      assert.equal(stdout, '');
      assert.match(stderr, says);
      assert.doesNotMatch(stderr, /nothing was found/);
    });
  }
});

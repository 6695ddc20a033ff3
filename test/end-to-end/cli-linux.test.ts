import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { EXIT } from '../../src/cli/exit-codes.ts';
import { type Ended, kvmi } from '../kit/kvmi-process.ts';
import { LinuxGuest, whyNoLinuxGuest } from '../kit/linux-guest.ts';
import { type ProcStat, parseStats } from '../kit/proc.ts';

/* The commands that look into a Linux guest, on a Debian guest under QEMU and on dumps of it. */

type Rows = Record<string, unknown>[];
const STATS = 'for p in /proc/[0-9]*; do cat $p/stat 2>/dev/null; done; true';

describe('kvmi on a Linux guest', { skip: whyNoLinuxGuest() ?? false, timeout: 540_000 }, () => {
  let vm: LinuxGuest;
  let target: string;
  let cache: string;
  const directory = mkdtempSync(join(tmpdir(), 'kvmi-cli-linux-'));

  before(async () => {
    cache = join(directory, 'cache');
    vm = await LinuxGuest.boot({ smp: 2 });
    target = `qemu:${vm.qmp}`;
  });
  after(async () => {
    await vm?.kill();
    rmSync(directory, { recursive: true, force: true });
  });

  function run(...args: string[]): Promise<Ended> {
    return kvmi(args, { XDG_CACHE_HOME: cache });
  }

  async function json(...args: string[]): Promise<Rows> {
    const { code, stdout, stderr } = await run(...args, '-o', 'json');
    assert.equal(code, EXIT.ok.code, stderr);
    return (JSON.parse(stdout) as { rows: Rows }).rows;
  }

  /** The processes that are there before and after `between`, and what it answers. */
  async function lasting(between: () => Promise<Rows>): Promise<{ own: ProcStat[]; rows: Rows }> {
    const first = parseStats(await vm.run(STATS));
    const rows = await between();
    const later = new Set(
      parseStats(await vm.run(STATS)).map(({ pid, startTicks }) => `${pid} ${startTicks}`),
    );
    return { own: first.filter(({ pid, startTicks }) => later.has(`${pid} ${startTicks}`)), rows };
  }

  function assertHas(rows: Rows, own: readonly ProcStat[]): void {
    assert.ok(own.length > 20, `only ${own.length} processes`);
    for (const { pid, ppid, comm } of own) {
      const row = rows.find((candidate) => candidate.pid === pid);
      assert.ok(row, `process ${pid} ${comm} is missing`);
      assert.equal(row.ppid, ppid, `parent of ${pid}`);
      // /proc shows more of the names of kernel threads than fits into comm.
      assert.equal(row.comm, row['kernel-thread'] ? comm.slice(0, String(row.comm).length) : comm);
    }
  }

  test('ps: the processes that the guest sees itself', async () => {
    const { own, rows } = await lasting(() => json('ps', target));
    assertHas(rows, own);
    assert.ok(rows.length <= own.length + 5, `${rows.length} processes, ${own.length} of them last`);
    const again = await json('ps', target, '--filter', 'pid=1');
    assert.deepEqual(
      [again.length, again[0]?.ppid, again[0]?.['kernel-thread']],
      [1, 0, false],
      'from the cache',
    );
  });

  for (const format of ['elf', 'raw', 'lime']) {
    test(`dump: ${format}, and ps on the dump`, async () => {
      const file = join(directory, `vm.${format}`);
      let seconds = 0;
      const { own, rows } = await lasting(async () => {
        const [row] = await json('dump', target, file, '--format', format);
        seconds = Number(row!.milliseconds) / 1000;
        assert.equal(row!.unreadable, 0);
        return json('ps', `file:${file}`);
      });
      assertHas(rows, own);
      assert.ok(seconds > 0);
      assert.equal(statSync(file).mode & 0o777, 0o600);
      await vm.nextTicks(2, 60_000);
      assert.equal((await run('dump', target, file)).code, EXIT.usage.code, 'what exists is left alone');
    });
  }

  test('tree, threads, env, maps, files: of init', async () => {
    const tree = await json('tree', target);
    assert.equal(tree.find(({ pid }) => pid === 1)?.depth, 0);
    assert.ok(tree.some(({ depth }) => Number(depth) > 0));
    assert.deepEqual(
      (await json('threads', target, '1')).map(({ tid }) => tid),
      [1],
    );
    assert.ok((await json('env', target, '1')).some(({ name }) => name === 'HOME'));
    assert.ok((await json('maps', target, '1')).some(({ protection }) => protection === 'r-xp'));
    // The shell that lists them has more of them open meanwhile.
    const own = (await vm.run('ls /proc/1/fd')).trim().split(/\s+/).map(Number);
    const files = (await json('files', target, '1')).map(({ fd }) => Number(fd));
    assert.ok(files.length >= 3, files.join());
    assert.deepEqual(
      files.filter((fd) => !own.includes(fd)),
      [],
    );
  });

  test('a process that is not there', async () => {
    for (const command of ['threads', 'maps', 'files', 'env']) {
      const { code, stderr, stdout } = await run(command, target, '999999');
      assert.deepEqual([code, stdout], [EXIT.usage.code, ''], command);
      assert.match(stderr, /no process 999999 \[E_NO_PROCESS\]/);
    }
  });

  test('sockets, modules, mounts, dmesg, system', async () => {
    await vm.run('ip link set lo up; nc -l -p 7777 >/dev/null 2>&1 & sleep 1');
    const [listener] = await json('sockets', target, '--filter', 'local-port=7777');
    assert.deepEqual([listener?.state, listener?.comm], ['LISTEN', 'nc']);
    const modules = (await vm.run('cat /proc/modules 2>/dev/null | cut -d" " -f1'))
      .split('\n')
      .filter(Boolean);
    assert.deepEqual(
      (await json('modules', target)).map(({ name }) => name),
      modules,
    );
    const mounts = (await vm.run('cut -d" " -f2 /proc/1/mounts')).trim().split('\n');
    assert.deepEqual((await json('mounts', target)).map(({ path }) => path).sort(), mounts.sort());
    const log = await json('dmesg', target);
    assert.match(String(log[0]?.text), /^Linux version /);
    const text = await run('dmesg', target);
    assert.match(text.stdout, /^\[ +\d+\.\d{6}\] Linux version /);
    const [system] = await json('system', target);
    assert.equal(system?.release, (await vm.run('uname -r')).trim());
  });

  test('symbols, type, print, read by symbol', async () => {
    const own = (await vm.run("grep -w 'T schedule' /proc/kallsyms")).split(' ')[0]!;
    const [symbol] = await json('symbols', target, 'schedule');
    assert.equal(BigInt(String(symbol?.address)), BigInt(`0x${own}`));
    const [at] = await json('symbols', target, `0x${(BigInt(`0x${own}`) + 3n).toString(16)}`);
    assert.equal(at?.offset, 3);
    const [comm] = await json('type', target, 'task_struct', '--filter', 'name=comm');
    assert.equal(comm?.size, 16);
    const [value] = await json('print', target, 'init_task.comm');
    assert.equal(value?.value, 'swapper/0');
    const parts = await json('print', target, 'init_task.se');
    assert.ok(parts.some(({ place }) => place === 'init_task.se.load.weight'));
    const unknown = await run('symbols', target, 'no_such_symbol');
    assert.equal(unknown.code, EXIT.error.code);
  });

  test('isf and symbols --elf write files', async () => {
    const isf = join(directory, 'linux.json');
    const [row] = await json('isf', target, isf);
    const written = JSON.parse(readFileSync(isf, 'utf8')) as Record<string, Record<string, unknown>>;
    assert.equal(Object.keys(written.symbols!).length, row?.symbols);
    assert.ok(written.user_types!.task_struct);
    const elf = join(directory, 'kernel.elf');
    const { code, stderr } = await run('symbols', target, '--elf', elf);
    assert.equal(code, EXIT.ok.code, stderr);
    assert.equal(readFileSync(elf).subarray(1, 4).toString('latin1'), 'ELF');
    assert.equal((await run('symbols', target, '--elf', elf)).code, EXIT.usage.code);
  });

  test('check: nothing on a clean guest, which nothing has touched', async () => {
    const { code, stdout, stderr } = await run('check', target, '-o', 'json');
    assert.equal(code, EXIT.ok.code, stdout + stderr);
    assert.deepEqual((JSON.parse(stdout) as { rows: Rows }).rows, []);
    await vm.nextTicks(2, 60_000);
  });

  test('a guest that is not Linux', async () => {
    const { code, stdout, stderr } = await run('ps', 'embedded:');
    assert.deepEqual([code, stdout], [EXIT.unknownOs.code, '']);
    assert.match(stderr, /\[E_NO_LINUX\]/);
  });
});

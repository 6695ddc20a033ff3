import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { EXIT } from '../../src/cli/exit-codes.ts';
import { type Ended, KvmiProcess, kvmi } from '../kit/kvmi-process.ts';
import { LinuxGuest, whyNoLinuxGuest } from '../kit/linux-guest.ts';

/* Memory dumps as a user makes and reads them, and what other tools make of them. */

type Row = Record<string, unknown>;
interface Document {
  readonly rows: Row[];
  readonly partial?: boolean;
  readonly reasons?: string[];
}

function whyNo(program: string): string | false {
  return spawnSync(program, ['--version'], { stdio: 'ignore' }).error === undefined
    ? false
    : `${program} is not installed`;
}

const KVMI = join(import.meta.dirname, '..', '..', '..', 'bin', 'kvmi');

describe('dumps of a Linux guest', { skip: whyNoLinuxGuest() ?? false, timeout: 540_000 }, () => {
  let vm: LinuxGuest;
  let target: string;
  const directory = mkdtempSync(join(tmpdir(), 'kvmi-cli-dump-'));
  const elf = join(directory, 'vm.elf');
  const symbols = join(directory, 'kernel.elf');

  before(async () => {
    vm = await LinuxGuest.boot({ smp: 2 });
    target = `qemu:${vm.qmp}`;
    // The processes of a guest that stands still are the same in each dump of it.
    await vm.monitor.execute('stop');
    await json('dump', target, elf);
  });
  after(async () => {
    await vm?.kill();
    rmSync(directory, { recursive: true, force: true });
  });

  function run(...args: string[]): Promise<Ended> {
    return kvmi(args, { XDG_CACHE_HOME: join(directory, 'cache') });
  }

  async function document(...args: string[]): Promise<Document> {
    const { code, stdout, stderr } = await run(...args, '-o', 'json');
    assert.equal(code, EXIT.ok.code, `${args.join(' ')}: ${stderr}`);
    return JSON.parse(stdout) as Document;
  }

  async function json(...args: string[]): Promise<Row[]> {
    return (await document(...args)).rows;
  }

  test('every format has the same processes, threads and registers', async () => {
    const processes = await json('ps', `file:${elf}`);
    const registers = await json('regs', `file:${elf}`, '--vcpu', 'all', '--all');
    const threads = await json('threads', `file:${elf}`);
    assert.ok(processes.length > 20);
    const files: [name: string, hasRegisters: boolean][] = [];
    for (const format of ['elf', 'raw', 'lime']) {
      const file = join(directory, `packed.${format}.zst`);
      const [row] = await json('dump', target, file, '--format', format, '--compress', 'zstd');
      assert.ok(Number(row?.size) < statSync(elf).size / 4, `${format}: ${row?.size} bytes`);
      assert.ok(Number(row?.paused) > 0);
      files.push([file, format === 'elf']);
    }
    for (const [name, options] of [
      ['qemu', { paging: false }],
      ['qemu-paging', { paging: true }],
      ['qemu-kdump', { paging: false, format: 'kdump-zlib' }],
    ] as const) {
      const file = join(directory, name);
      await vm.monitor.execute('dump-guest-memory', { protocol: `file:${file}`, ...options });
      files.push([file, true]);
    }
    for (const [file, hasRegisters] of files) {
      assert.deepEqual(await json('ps', `file:${file}`), processes, file);
      assert.deepEqual(await json('threads', `file:${file}`), threads, file);
      const { code, stdout } = await run('regs', `file:${file}`, '--vcpu', 'all', '--all', '-o', 'json');
      assert.equal(code, hasRegisters ? EXIT.ok.code : EXIT.unsupported.code, file);
      if (hasRegisters) assertSameRegisters((JSON.parse(stdout) as Document).rows, registers, file);
    }
  });

  test('what makedumpfile makes of it can be read', { skip: whyNo('makedumpfile') }, async () => {
    const processes = await json('ps', `file:${elf}`);
    for (const compression of ['-c', '-l']) {
      const file = join(directory, `makedumpfile${compression}`);
      execFileSync('makedumpfile', [compression, '-d', '1', elf, file], { stdio: 'ignore' });
      assert.deepEqual(await json('ps', `file:${file}`), processes, compression);
    }
  });

  test('verify: nothing until something is damaged', async () => {
    const file = join(directory, 'verified.lime');
    await json('dump', target, file, '--format', 'lime');
    assert.deepEqual(await json('verify', file), []);
    spawnSync('dd', ['if=/dev/urandom', `of=${file}`, 'bs=1M', 'seek=100', 'count=1', 'conv=notrunc'], {
      stdio: 'ignore',
    });
    const { code, stdout } = await run('verify', file, '-o', 'json');
    assert.equal(code, EXIT.alert.code);
    assert.equal((JSON.parse(stdout) as Document).rows.length, 1);
    assert.equal((await run('verify', join(directory, 'none'))).code, EXIT.noSuchVm.code);
  });

  test('a full disk is said, and the guest goes on', {
    skip: spawnSync('unshare', ['-m', 'true']).status !== 0 && 'only root can mount a small disk',
  }, async () => {
    await vm.monitor.execute('cont');
    const mount = join(directory, 'small');
    const script = `mkdir ${mount} && mount -t tmpfs -o size=1m small ${mount} && exec ${process.execPath} ${KVMI} dump ${target} ${mount}/vm.elf`;
    const { status, stderr } = spawnSync('unshare', ['-m', 'sh', '-c', script], { encoding: 'utf8' });
    assert.equal(status, EXIT.error.code, stderr);
    assert.match(stderr, /no space left.*\[E_OUTPUT_FILE\]/);
    await vm.nextTicks(2, 60_000);
  });

  test('--live: the guest is not paused, and the result says what that means', async () => {
    await vm.monitor.execute('cont');
    const file = join(directory, 'live.elf');
    const { rows, partial, reasons } = await document('dump', target, file, '--live');
    assert.equal(rows[0]?.paused, 0);
    assert.equal(partial, true);
    assert.match(reasons![0]!, /ran while/);
    assert.ok((await json('ps', `file:${file}`)).length > 20);
    assert.equal((await run('regs', `file:${file}`)).code, EXIT.unsupported.code);
  });

  test('one that was killed leaves the guest running, and goes on', async () => {
    await vm.monitor.execute('cont');
    const file = join(directory, 'killed.elf');
    const killed = new KvmiProcess(['dump', target, file, '-v']);
    await killed.seen('stderr', /paused while/);
    killed.kill('SIGKILL');
    await killed.ended;
    await vm.nextTicks(2, 60_000);
    assert.equal(existsSync(file), false);
    await document('dump', target, file);
    assert.deepEqual(await json('verify', file), []);
  });

  test('gdb reads the dump as a core file, and its symbols are those of the kernel', {
    skip: whyNo('gdb'),
  }, async () => {
    assert.equal((await run('symbols', `file:${elf}`, '--elf', symbols)).code, EXIT.ok.code);
    const known = (await json('symbols', `file:${elf}`)) as { name: string; address: string; type: string }[];
    const namesAt = new Map<string, Set<string>>();
    for (const { name, address } of known)
      namesAt.set(address, (namesAt.get(address) ?? new Set()).add(name));
    const sample = known.filter(({ type }, i) => i % 97 === 0 && type !== 'A');
    const script = join(directory, 'commands.gdb');
    writeFileSync(
      script,
      sample.map(({ name, address }) => `echo @\\n\ninfo symbol ${address}\ninfo address ${name}`).join('\n'),
    );
    const output = execFileSync(
      'gdb',
      [
        ...['-nx', '-batch', '-ex', 'set print demangle off', '-ex', 'set demangle-style none'],
        ...['-ex', 'info threads', '-ex', 'x/s linux_banner', '-x', script, symbols, elf],
      ],
      { encoding: 'utf8', maxBuffer: 64 << 20, stdio: ['ignore', 'pipe', 'ignore'] },
    );
    assert.match(output, /LWP 2/, 'a thread for each vCPU');
    assert.match(output, /"Linux version /, 'memory by virtual address');
    const answers = output.split('@\n').slice(1);
    assert.equal(answers.length, sample.length);
    const counts = new Map<string, number>();
    for (const { name } of known) counts.set(name, (counts.get(name) ?? 0) + 1);
    answers.forEach((answer, i) => {
      const { name, address } = sample[i]!;
      const [symbol] = answer.split(/ (?:in section|\+)/);
      assert.ok(namesAt.get(address)!.has(symbol!), `info symbol ${address}: ${answer}`);
      if (counts.get(name) === 1)
        assert.ok(answer.includes(` ${address} `), `info address ${name}: ${answer}`);
    });
  });
});

/** QEMU's notes lack what follows from the rest or is not in them. */
function assertSameRegisters(rows: readonly Row[], expected: readonly Row[], file: string): void {
  const known = ({ group, register }: Row) =>
    group === 'general' || /^(cr[0-4]|gdt|idt)$/.test(String(register));
  assert.deepEqual(rows.filter(known), expected.filter(known), file);
}

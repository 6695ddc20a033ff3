import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, test } from 'node:test';
import { loadCommands } from '../../src/cli/commands/index.ts';
import { EXIT } from '../../src/cli/exit-codes.ts';
import { kernelAddress, kernelSymbol } from '../../src/drivers/embedded/index.ts';
import { KvmiProcess, kvmi } from '../kit/kvmi-process.ts';

/* The command line in processes of its own, on the machine that needs nothing. */

const directory = mkdtempSync(join(tmpdir(), 'kvmi-cli-'));
after(() => rmSync(directory, { recursive: true }));

const TIMER = `0x${kernelSymbol('timer').toString(16)}`;
const KERNEL = `0x${kernelSymbol('text_start').toString(16)}`;

function document(text: string): { v: number; rows: Record<string, unknown>[]; [name: string]: unknown } {
  return JSON.parse(text);
}

describe('help and errors', { concurrency: 2 }, () => {
  test('help lists every command and every exit code', async () => {
    const { code, stdout, stderr } = await kvmi(['--help']);
    assert.equal(code, EXIT.ok.code);
    assert.equal(stderr, '');
    assert.match(stdout, /^Examples:/);
    const flowing = stdout.replaceAll(/\s+/g, ' ');
    for (const { name, summary } of await loadCommands()) {
      assert.ok(flowing.includes(`${name} ${summary}`), name);
    }
    for (const { code: each, meaning } of Object.values(EXIT)) {
      assert.match(stdout, new RegExp(`${each}  ${meaning.slice(0, 10)}`));
    }
  });

  test('help of each command starts with examples', async () => {
    for (const { name } of await loadCommands()) {
      const { code, stdout } = await kvmi([name, '--help']);
      assert.equal(code, EXIT.ok.code, name);
      assert.match(stdout, new RegExp(`^Examples:\n.*\n.*kvmi ${name}`), name);
    }
    const { stdout } = await kvmi(['help', 'regs']);
    assert.match(stdout, /kvmi regs \[options\] \[VM\]/);
  });

  const USAGE: readonly (readonly [args: readonly string[], says: RegExp])[] = [
    [['rges'], /Did you mean regs/],
    [['list', '--nope'], /--nope/],
    [['list', '--outptu', 'json'], /--output/],
    [['list', '-o', 'yaml'], /table, wide, json, jsonl, csv/],
    [['list', '-c', 'nmae'], /Did you mean name/],
    [['list', '--filter', 'pid>many'], /many/],
    [['read', 'embedded:'], /ADDRESS/],
    [['read', 'embedded:', '12zz'], /hexadecimal/],
    [['read', 'embedded:', 'timer', '--physical'], /symbols are virtual/],
    [['read', 'embedded:', '0', '16', 'more'], /arguments/],
    [['regs', 'embedded:', '--vcpu', '7'], /vCPU 7/],
    [['regs', 'embedded:', '--msr', 'lsatr'], /Did you mean lstar/],
    [['regs', 'embedded:0'], /embedded:VCPUS/],
    [['hook', 'embedded:'], /--tool/],
    [['hook', 'embedded:', '--tool', '/run/x'], /unix:\/run\/x/],
    [['hook', 'embedded:', '--tool', 'unix:/x', '--allow-events', 'BRAEKPOINT'], /Did you mean BREAKPOINT/],
    [['hook', 'embedded:', '--tool', 'unix:/x', '--dialect', 'v8'], /v7, v9, v12/],
    [['completion', 'tcsh'], /bash, zsh, fish/],
  ];
  for (const [args, says] of USAGE) {
    test(`kvmi ${args.join(' ')}: wrong usage`, async () => {
      const { code, stdout, stderr } = await kvmi(args);
      assert.equal(code, EXIT.usage.code, stderr);
      assert.equal(stdout, '');
      assert.match(stderr, says);
      assert.match(stderr, /^kvmi: error: .*\[E_[A-Z]+\]/);
    });
  }

  test('a VM that does not exist', async () => {
    for (const vm of ['nosuch', '99999999', 'qemu:/nonexistent/qmp']) {
      const { code, stderr } = await kvmi(['regs', vm]);
      assert.equal(code, EXIT.noSuchVm.code, vm);
      assert.match(stderr, /\[E_NO_VM\]\nhint: /);
    }
  });

  test('a hostile name in an error does not reach the terminal as it is', async () => {
    const { stderr } = await kvmi(['regs', 'x\x1b]0;pwned\x07\u202e']);
    assert.doesNotMatch(stderr, /[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]/);
    assert.match(stderr, /\\x1b\]0;pwned/);
  });

  test('errors as JSON', async () => {
    const { code, stderr } = await kvmi(['regs', 'nosuch', '--log-format', 'json']);
    const error = JSON.parse(stderr) as Record<string, unknown>;
    assert.deepEqual([error.v, error.level, error.code, error.exit], [1, 'error', 'E_NO_VM', code]);
    const usage = await kvmi(['--log-format=json', 'list', '--nope']);
    assert.equal((JSON.parse(usage.stderr) as { code: string }).code, 'E_USAGE');
  });

  test('common options may stand before the command', async () => {
    const { stdout } = await kvmi(['-o', 'json', 'version']);
    assert.equal(document(stdout).command, 'version');
  });
});

describe('commands', { concurrency: 2 }, () => {
  test('version', async () => {
    const { stdout } = await kvmi(['version']);
    assert.match(stdout, /^kvmi \d+\.\d+\.\d+ \(node /);
    assert.equal((await kvmi(['--version'])).stdout, stdout);
    assert.match((await kvmi(['version', '-q'])).stdout, /^\d+\.\d+\.\d+\n$/);
  });

  test('doctor finds this very Node.js good enough', async () => {
    const { code, stdout } = await kvmi(['doctor', '-o', 'json']);
    assert.equal(code, EXIT.ok.code);
    const node = document(stdout).rows.find((row) => row.check === 'node');
    assert.equal(node?.severity, 'ok');
  });

  test('info: memory map and capabilities with reasons', async () => {
    const { code, stdout } = await kvmi(['info', 'embedded:', '-o', 'json']);
    assert.equal(code, EXIT.ok.code);
    const { rows } = document(stdout);
    const value = (section: string, name: string) =>
      rows.find((row) => row.section === section && row.name === name);
    assert.equal(value('memory', '0x0')?.value, 16 << 20);
    assert.equal(value('capability', 'breakpoint')?.value, true);
    assert.equal(value('capability', 'virtualization-exception')?.value, false);
    assert.match(String(value('capability', 'virtualization-exception')?.note), /#VE/);
    assert.ok(value('dialect', 'v7'));
  });

  test('regs: general registers as gdb shows them, all of them, and MSRs', async () => {
    const { code, stdout } = await kvmi(['regs', 'embedded:']);
    assert.equal(code, EXIT.ok.code);
    assert.match(stdout, /^vCPU 0\nrax +0x[0-9a-f]+ +-?\d+\n/);
    assert.match(stdout, /\nrip +0xffffffff8[0-9a-f]{7}\nrflags +0x[0-9a-f]+ +\[.*\]\n$/);
    const all = await kvmi([
      'regs',
      'embedded:',
      '--all',
      '--msr',
      'lstar',
      '--msr',
      '0xc0000080',
      '-o',
      'json',
    ]);
    const rows = document(all.stdout).rows;
    const row = (name: string) => rows.find((each) => each.register === name);
    assert.match(String(row('cr0')?.meaning), /PE .*PG/);
    assert.match(String(row('cs')?.meaning), /64-bit/);
    assert.equal(row('lstar')?.value, `0x${kernelSymbol('syscall_entry').toString(16)}`);
    assert.match(String(row('efer')?.meaning), /LMA/);
  });

  test('regs: a vCPU that was not started', async () => {
    const one = await kvmi(['regs', 'embedded:2', '--vcpu', '1']);
    assert.equal(one.code, EXIT.error.code);
    assert.match(one.stderr, /\[E_NOT_STARTED\]/);
    const all = await kvmi(['regs', 'embedded:2', '--vcpu', 'all', '--strict', '-o', 'json']);
    assert.equal(all.code, EXIT.partial.code);
    const { partial, reasons, rows } = document(all.stdout);
    assert.equal(partial, true);
    assert.match(String(reasons), /vCPU 1/);
    assert.equal(rows.length, 18);
  });

  test('read: virtual and physical addresses show the same memory, in every form', async () => {
    const kernel = readFileSync(new URL('../../../guest/kernel.bin', import.meta.url)).subarray(0, 64);
    const virtual = await kvmi(['read', 'embedded:', KERNEL, '64', '--hex']);
    assert.equal(virtual.stdout.replaceAll('\n', ''), kernel.toString('hex'));
    const physical = `0x${kernelAddress('text_start').toString(16)}`;
    const json = await kvmi(['read', 'embedded:', physical, '64', '-p', '-o', 'json']);
    const rows = document(json.stdout).rows;
    assert.equal(rows.map((row) => row.bytes).join(''), kernel.toString('hex'));
    assert.equal(rows[0]?.address, physical);
    const dump = await kvmi(['read', 'embedded:', physical, '64', '-p']);
    assert.match(dump.stdout, /^0{10}100000 {2}fc bc 00 d0/);
  });

  test('read: what is not there', async () => {
    const none = await kvmi(['read', 'embedded:', '0xfffff000', '4K', '-p']);
    assert.equal(none.code, EXIT.error.code);
    assert.match(none.stderr, /\[E_NOT_BACKED\]/);
    const half = await kvmi(['read', 'embedded:', '0xfff000', '8K', '-p', '--raw']);
    assert.equal(half.code, EXIT.ok.code);
    assert.equal(half.stdout.length, 8192);
    assert.match(half.stderr, /not complete: no memory at 0x1000000-0x1000fff/);
    assert.equal(
      (await kvmi(['read', 'embedded:', '0xfff000', '8K', '-p', '--strict'])).code,
      EXIT.partial.code,
    );
  });

  test('a memory dump is a VM that has stopped', async () => {
    const dump = join(directory, 'memory.raw');
    const content = Buffer.alloc(64 << 10, 0x5a);
    writeFileSync(dump, content);
    const info = await kvmi(['info', `file:${dump}`, '-o', 'json']);
    assert.equal(document(info.stdout).rows.find((row) => row.section === 'memory')?.value, content.length);
    const read = await kvmi(['read', `file:${dump}`, '0x8000', '16', '-p', '--hex']);
    assert.equal(read.stdout, `${'5a'.repeat(16)}\n`);
    const regs = await kvmi(['regs', `file:${dump}`]);
    assert.notEqual(regs.code, EXIT.ok.code, 'a raw dump has no registers');
    const breakpoint = await kvmi(['break', `file:${dump}`, '0x1000']);
    assert.equal(breakpoint.code, EXIT.unsupported.code, breakpoint.stderr);
    assert.equal((await kvmi(['info', 'file:/nonexistent'])).code, EXIT.noSuchVm.code);
  });

  test('write: needs to be allowed, and tells what was there', async () => {
    const refused = await kvmi(['write', 'embedded:', KERNEL, '90']);
    assert.equal(refused.code, EXIT.permission.code);
    assert.match(refused.stderr, /--allow-write/);
    const written = await kvmi(['write', 'embedded:', KERNEL, '9090', '--allow-write', '-o', 'json']);
    assert.equal(written.code, EXIT.ok.code);
    assert.deepEqual(document(written.stdout).rows, [{ address: KERNEL, size: 2, before: 'fcbc' }]);
    const file = join(directory, 'patch');
    writeFileSync(file, Buffer.alloc(5000, 0x90));
    const physical = await kvmi([
      'write',
      'embedded:',
      '0x200000',
      '--file',
      file,
      '-p',
      '--allow-write',
      '-o',
      'json',
    ]);
    assert.equal(document(physical.stdout).rows[0]?.size, 5000);
    const outside = await kvmi(['write', 'embedded:', '0x1000000', '90', '-p', '--allow-write']);
    assert.equal(outside.code, EXIT.error.code);
  });

  test('completion scripts name every command', async () => {
    for (const shell of ['bash', 'zsh', 'fish']) {
      const { code, stdout } = await kvmi(['completion', shell]);
      assert.equal(code, EXIT.ok.code);
      for (const { name } of await loadCommands()) assert.ok(stdout.includes(name), `${shell}: ${name}`);
    }
  });
});

describe('break', { concurrency: 2 }, () => {
  test('reports hits and ends after --count', async () => {
    const { code, stdout, stderr } = await kvmi(['break', 'embedded:', TIMER, '-n', '5', '-o', 'json']);
    assert.equal(code, EXIT.ok.code);
    const { rows } = document(stdout);
    assert.equal(rows.length, 5);
    for (const row of rows) {
      assert.equal(row.rip, TIMER);
      assert.match(String(row.time), /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z$/);
    }
    assert.match(stderr, /5 hits in .*the probe is removed/);
  });

  test('JSON lines when piped; chosen columns only', async () => {
    const { stdout } = await kvmi(['break', 'embedded:', TIMER, '-n', '2', '-c', 'vcpu,rip']);
    assert.equal(stdout, `{"v":1,"vcpu":0,"rip":"${TIMER}"}\n`.repeat(2));
  });

  test('a table with registers', async () => {
    const { stdout } = await kvmi(['break', 'embedded:', TIMER, '-n', '1', '-o', 'table', '--regs']);
    assert.match(stdout, /^TIME +VCPU +RIP +RAX .*RFLAGS\n.*0x/);
  });

  test('Ctrl-C removes the breakpoint, completes the JSON and ends with 130', async () => {
    const process = new KvmiProcess(['break', 'embedded:', TIMER, '-o', 'json']);
    await process.seen('stdout', /"rip"/, 2);
    process.kill('SIGINT');
    const { code, stdout, stderr } = await process.ended;
    assert.equal(code, EXIT.interrupted.code);
    assert.ok(document(stdout).rows.length >= 2);
    assert.match(stderr, /the probe is removed/);
  });

  test('SIGTERM ends with 143', async () => {
    const process = new KvmiProcess(['break', 'embedded:', TIMER]);
    await process.seen('stdout', /rip/);
    process.kill('SIGTERM');
    const { code, stderr } = await process.ended;
    assert.equal(code, EXIT.terminated.code);
    assert.match(stderr, /the probe is removed/);
  });

  test('--timeout ends with 124', async () => {
    const { code } = await kvmi(['break', 'embedded:', TIMER, '--timeout', '0.5']);
    assert.equal(code, EXIT.timeout.code);
  });

  test('a reader that leaves is no error', async () => {
    const process = new KvmiProcess(['break', 'embedded:', TIMER]);
    await process.seen('stdout', /rip/);
    process.child.stdout!.destroy();
    const { code, stderr } = await process.ended;
    assert.equal(code, EXIT.ok.code);
    assert.match(stderr, /the probe is removed/);
  });

  test('a symbol of the kernel is an address', async () => {
    const { code, stdout } = await kvmi(['break', 'embedded:', 'timer', '-n', '1', '-q']);
    assert.equal(code, EXIT.ok.code);
    assert.equal(stdout, `${TIMER}\n`);
    const read = await kvmi(['read', 'embedded:', 'text_start+1', '2', '--hex']);
    assert.equal(read.stdout, 'bc00\n');
    const unknown = await kvmi(['break', 'embedded:', 'tiemr']);
    assert.equal(unknown.code, EXIT.error.code);
    assert.match(unknown.stderr, /\[E_SYMBOL\]\nhint: Did you mean timer/);
  });

  test('an address that is not mapped is waited for', async () => {
    const { code, stderr } = await kvmi(['break', 'embedded:', '0xffff900000000000', '--timeout', '1']);
    assert.equal(code, EXIT.timeout.code);
    assert.match(stderr, /0 hits in .*the probe is removed/);
  });
});

import assert from 'node:assert/strict';
import { execFile, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { EXIT } from '../../src/cli/exit-codes.ts';
import { symbolsOf } from '../kit/kernel-text.ts';
import { KvmiProcess, kvmi } from '../kit/kvmi-process.ts';
import { LinuxGuest, whyNoLinuxGuest } from '../kit/linux-guest.ts';

/* `kvmi gdb` as a user runs it, with Debian's GDB. */

const whyNoGdb =
  spawnSync('gdb', ['--version'], { stdio: 'ignore' }).status === 0 ? undefined : 'gdb is not installed';

/** Runs GDB with the line that `kvmi gdb` printed, then other commands. */
async function gdb(server: KvmiProcess, ...commands: string[]): Promise<string> {
  await server.seen('stdout', /target remote .*\n/);
  const lines = ['set pagination off', 'set confirm off', server.stdout.trim(), ...commands];
  const args = ['-nx', '-batch', ...lines.flatMap((line) => ['-ex', line])];
  // One that is killed on purpose fails, with what it printed until then.
  const ended = promisify(execFile)('gdb', args, { timeout: 50_000 });
  const { stdout, stderr } = await ended.catch((error: { stdout: string; stderr: string }) => error);
  return stdout + stderr;
}

test('kvmi gdb: other hosts only when asked for', async () => {
  const { code, stderr } = await kvmi(['gdb', 'embedded:', '--listen', 'tcp:0.0.0.0:0']);
  assert.equal(code, EXIT.usage.code, stderr);
  assert.match(stderr, /--remote/);
});

test('kvmi gdb over TCP, ended by the first GDB', { skip: whyNoGdb ?? false }, async () => {
  const server = new KvmiProcess(['gdb', 'embedded:2', '--once', '--listen', 'tcp:127.0.0.1:0']);
  const output = await gdb(server, 'info threads', 'detach');
  assert.match(output, /vCPU 1/, output);
  assert.equal((await server.ended).code, EXIT.ok.code);
});

test('kvmi gdb on a Linux guest', { skip: whyNoGdb ?? whyNoLinuxGuest() ?? false }, async () => {
  const vm = await LinuxGuest.boot({ smp: 2 });
  try {
    const symbols = await symbolsOf(vm, ['linux_banner', '__x64_sys_write']);
    const address = (name: string): string => `0x${symbols[name]!.toString(16)}`;
    const server = new KvmiProcess(['gdb', `qemu:${vm.qmp}`, '--once']);
    const entry = address('__x64_sys_write');
    const output = await gdb(
      server,
      `x/s ${address('linux_banner')}`,
      `break *${entry}`,
      'continue',
      'printf "hit=%lx\\n", $rip',
      'stepi',
      'printf "stepped=%lx\\n", $rip',
      'info registers cr3 gs_base',
      'continue',
      'printf "again=%lx\\n", $rip',
      'detach',
    );
    assert.match(output, /Linux version /, output);
    assert.match(output, new RegExp(`hit=${entry.slice(2)}\n`), output);
    const stepped = BigInt(`0x${/stepped=(\w+)/.exec(output)?.[1] ?? '0'}`);
    assert.notEqual(stepped, symbols.__x64_sys_write, output);
    assert.match(output, /cr3\s+0x/, output);
    assert.match(output, new RegExp(`again=${entry.slice(2)}\n`), output);
    assert.equal((await server.ended).code, EXIT.ok.code, server.stderr);
    await vm.nextTicks(3, 30_000);
    assert.equal(await vm.run('echo alive'), 'alive\n');
  } finally {
    await vm.kill();
  }
});

test('kvmi gdb: a breakpoint in code that is not mapped yet (-S)', {
  skip: whyNoGdb ?? whyNoLinuxGuest() ?? false,
}, async () => {
  const booted = await LinuxGuest.boot({ append: 'nokaslr' });
  const { start_kernel: start } = await symbolsOf(booted, ['start_kernel']);
  await booted.kill();
  const vm = await LinuxGuest.boot({ append: 'nokaslr', paused: true });
  try {
    const server = new KvmiProcess(['gdb', `qemu:${vm.qmp}`, '--once', '-v']);
    const debugging = gdb(
      server,
      `hbreak *0x${start!.toString(16)}`,
      'continue',
      'printf "hit=%lx\\n", $rip',
      'detach',
    );
    await server.seen('stderr', /GDB attached/);
    await vm.monitor.execute('cont');
    assert.match(await debugging, new RegExp(`hit=${start!.toString(16)}\n`));
    assert.equal((await server.ended).code, EXIT.ok.code, server.stderr);
    await vm.nextTicks(1, 120_000);
  } finally {
    await vm.kill();
  }
});

test('kvmi gdb on a memory dump', { skip: whyNoGdb ?? false }, async () => {
  const directory = mkdtempSync(join(tmpdir(), 'kvmi-gdb-dump-'));
  try {
    const file = join(directory, 'vm.elf');
    assert.equal((await kvmi(['dump', 'embedded:', file])).code, EXIT.ok.code);
    const { stdout } = await kvmi(['regs', `file:${file}`, '-o', 'json']);
    const rip = (JSON.parse(stdout) as { rows: { register: string; value: string }[] }).rows.find(
      ({ register }) => register === 'rip',
    )!.value;
    const server = new KvmiProcess(['gdb', `file:${file}`, '--once']);
    const output = await gdb(
      server,
      'info threads',
      'printf "rip=0x%lx\\n", $rip',
      'x/i $rip',
      'break *($rip + 32)',
      'continue',
      'detach',
    );
    assert.match(output, /vCPU 0, cr3 0x/, output);
    assert.match(output, new RegExp(`rip=${rip}\n`), output);
    assert.match(output, new RegExp(`=> ${rip}:\\s+\\w+`), output);
    assert.match(output, /Cannot insert breakpoint 1/, output);
    assert.equal((await server.ended).code, EXIT.ok.code, server.stderr);
    assert.match(server.stderr, /GDB's request failed/);
  } finally {
    rmSync(directory, { recursive: true });
  }
});

test('kvmi gdb: Ctrl-C stops the guest, a watchpoint in hardware is refused, and a GDB that is killed leaves nothing', {
  skip: whyNoGdb ?? whyNoLinuxGuest() ?? false,
}, async () => {
  const vm = await LinuxGuest.boot({ smp: 2 });
  try {
    const { __x64_sys_write: write } = await symbolsOf(vm, ['__x64_sys_write']);
    const entry = `0x${write!.toString(16)}`;
    const server = new KvmiProcess(['gdb', `qemu:${vm.qmp}`]);
    const interrupted = await gdb(
      server,
      // GDB takes the signal while it waits for the guest.
      'python import os, signal, threading',
      'python threading.Timer(1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()',
      'continue',
      'printf "stopped at %lx\\n", $rip',
      `watch *(int *)${entry}`,
      'continue',
      'detach',
    );
    assert.match(interrupted, /SIGINT/, interrupted);
    assert.match(interrupted, /stopped at \w+/, interrupted);
    assert.match(interrupted, /Could not insert hardware/, interrupted);
    const killed = await gdb(
      server,
      `break *${entry}`,
      'continue',
      'printf "hit\\n"',
      'python import os, signal',
      'python os.kill(os.getpid(), signal.SIGKILL)',
    );
    assert.match(killed, /hit\n/, killed);
    await vm.nextTicks(3, 30_000);
    assert.equal(await vm.run('echo alive'), 'alive\n');
    const again = await gdb(server, `x/1bx ${entry}`, 'detach');
    assert.doesNotMatch(again, /:\s+0xcc/, 'no breakpoint is left in the code');
    server.kill('SIGINT');
    assert.equal((await server.ended).code, EXIT.interrupted.code, server.stderr);
  } finally {
    await vm.kill();
  }
});

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { test } from 'node:test';
import { EXIT } from '../../src/cli/exit-codes.ts';
import { symbolsOf } from '../kit/kernel-text.ts';
import { KVMI, KvmiProcess, kvmi } from '../kit/kvmi-process.ts';
import { LinuxGuest, whyNoLinuxGuest } from '../kit/linux-guest.ts';

test('kvmi break on the embedded machine: by what the guest is seen, each hit, and that nothing is left', async () => {
  const { code, stdout, stderr } = await kvmi([
    'break',
    'embedded:',
    'syscall_entry',
    '-n',
    '3',
    '-v',
    '-o',
    'csv',
  ]);
  assert.equal(code, EXIT.ok.code, stderr);
  assert.equal(stdout.trim().split('\n').length, 1 + 3, stdout);
  assert.match(stderr, /waiting at 0x\w+, by the interpreter; guest memory stays as it is/);
  assert.match(stderr, /3 hits in .*; the probe is removed/);
});

const FUNCTION = '__x64_sys_write';
/** The kernel calls it all the time. */
const BUSY = 'ktime_get';

test('kvmi break on QEMU', { skip: whyNoLinuxGuest() ?? false }, async (t) => {
  const vm = await LinuxGuest.boot({ smp: 2 });
  t.after(() => vm.kill());
  const [write] = Object.values(await symbolsOf(vm, [FUNCTION]));
  const address = `0x${write!.toString(16)}`;

  await t.test('Ctrl-C: the probe is removed, and the guest runs on', async () => {
    const breaking = new KvmiProcess(['break', `qemu:${vm.qmp}`, address, '-o', 'jsonl', '-v']);
    await breaking.seen('stdout', /rip/, 3);
    assert.match(breaking.stderr, /by QEMU's own breakpoints; guest memory stays as it is/);
    breaking.kill('SIGINT');
    assert.equal((await breaking.ended).code, EXIT.interrupted.code);
    assert.match(breaking.stderr, /the probe is removed/);
    await vm.nextTicks(2, 60_000);
  });

  await t.test('Ctrl-Z: the command goes on, and says why; so does the guest', async () => {
    const breaking = new KvmiProcess(['break', `qemu:${vm.qmp}`, address, '-o', 'jsonl']);
    await breaking.seen('stdout', /rip/, 3);
    breaking.kill('SIGTSTP');
    await breaking.seen('stderr', /does not stop while it has a VM/);
    await vm.nextTicks(2, 60_000);
    breaking.kill('SIGINT');
    assert.equal((await breaking.ended).code, EXIT.interrupted.code);
  });

  await t.test('nobody reads what is printed: the command says so, and ends when it is told to', async () => {
    const options = [KVMI, 'break', `qemu:${vm.qmp}`, BUSY, '-o', 'jsonl'];
    const breaking = spawn(process.execPath, options, { stdio: ['ignore', 'pipe', 'pipe'] });
    let stderr = '';
    const told = new Promise<void>((resolve) => {
      breaking.stderr.on('data', (text) => {
        stderr += text;
        if (/what is printed is not read: the guest stands still/.test(stderr)) resolve();
      });
    });
    await told;
    const ended = once(breaking, 'exit');
    breaking.kill('SIGINT');
    assert.deepEqual(await ended, [EXIT.interrupted.code, null], stderr);
    assert.doesNotMatch(stderr, /did not end/);
    await vm.nextTicks(2, 60_000);
  });

  await t.test('somebody removes the gdbstub: the command says so, and the guest runs on', async () => {
    const breaking = new KvmiProcess(['break', `qemu:${vm.qmp}`, address, '-o', 'jsonl']);
    await breaking.seen('stdout', /rip/, 3);
    await vm.monitor.hmp('gdbserver none');
    assert.equal((await breaking.ended).code, EXIT.peer.code, breaking.stderr);
    assert.match(
      breaking.stderr,
      /QEMU has closed its gdbstub .*\[E_GDB_CLOSED\]\nhint: .*hook the VM again/,
    );
    assert.doesNotMatch(breaking.stderr, /the probe is removed/);
    await vm.nextTicks(2, 60_000);
  });

  await t.test('the guest is reset: the command says that addresses may be others', async () => {
    const breaking = new KvmiProcess(['break', `qemu:${vm.qmp}`, address, '-o', 'jsonl']);
    await breaking.seen('stdout', /rip/, 3);
    await vm.monitor.execute('system_reset');
    await breaking.seen('stderr', /the guest was reset: .* begin again/);
    breaking.kill('SIGINT');
    await breaking.ended;
    await vm.nextTicks(2, 180_000);
  });

  await t.test('the VM is killed: the last line does not say that the probe is removed', async () => {
    const breaking = new KvmiProcess(['break', `qemu:${vm.qmp}`, FUNCTION, '-o', 'jsonl']);
    await breaking.seen('stdout', /rip/, 3);
    vm.process.kill('SIGKILL');
    assert.equal((await breaking.ended).code, EXIT.error.code, breaking.stderr);
    assert.match(breaking.stderr, /the VM is gone/);
    assert.match(breaking.stderr, /QEMU has ended, and not because its guest was shut down \[E_GONE\]/);
    assert.doesNotMatch(breaking.stderr, /the probe is removed/);
  });
});

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { EXIT } from '../../src/cli/exit-codes.ts';
import { symbolsOf } from '../kit/kernel-text.ts';
import { KvmiProcess, kvmi } from '../kit/kvmi-process.ts';
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

test('kvmi break on QEMU', { skip: whyNoLinuxGuest() ?? false }, async (t) => {
  const vm = await LinuxGuest.boot({ smp: 2 });
  t.after(() => vm.kill());
  const [write] = Object.values(await symbolsOf(vm, ['__x64_sys_write']));
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

  await t.test('the VM is killed: the last line does not say that the probe is removed', async () => {
    const breaking = new KvmiProcess(['break', `qemu:${vm.qmp}`, address, '-o', 'jsonl']);
    await breaking.seen('stdout', /rip/, 3);
    vm.process.kill('SIGKILL');
    assert.equal((await breaking.ended).code, EXIT.error.code, breaking.stderr);
    assert.match(breaking.stderr, /the VM is gone, was let go, or could not be reached/);
    assert.doesNotMatch(breaking.stderr, /the probe is removed/);
  });
});

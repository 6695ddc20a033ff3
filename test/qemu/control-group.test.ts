import assert from 'node:assert/strict';
import { existsSync, mkdirSync, mkdtempSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { lives, readText } from '../../src/system/proc.ts';
import { journalOf, nothingLeft, unharmed, until } from '../kit/guarded.ts';
import { KernelText } from '../kit/kernel-text.ts';
import { KvmiProcess } from '../kit/kvmi-process.ts';
import { LinuxGuest, whyNoLinuxGuest } from '../kit/linux-guest.ts';

/* What ends every process of a control group ends kvmi, and not its guard. */

const FUNCTION = '__x64_sys_write';
const ROOT = /^\S+ (\S+) cgroup2 /m.exec(readText('/proc/self/mounts') ?? '')?.[1];

/** Why no control group can be made and killed here. */
function whyNoGroups(): string | undefined {
  if (ROOT === undefined) return 'needs a hierarchy of control groups, version 2';
  try {
    const group = mkdtempSync(join(ROOT, 'kvmi-test-'));
    const killable = existsSync(join(group, 'cgroup.kill'));
    rmdirSync(group);
    return killable ? undefined : 'the kernel has no cgroup.kill';
  } catch (error) {
    return `no control group can be made: ${(error as Error).message}`;
  }
}

function groupOf(pid: number): string | undefined {
  return /^0::(.*)$/m.exec(readText(`/proc/${pid}/cgroup`) ?? '')?.[1];
}

describe('a control group', { skip: whyNoLinuxGuest() ?? whyNoGroups() ?? false }, () => {
  let vm: LinuxGuest;
  let text: KernelText;
  let group: string;

  before(async () => {
    group = mkdtempSync(join(ROOT!, 'kvmi-test-'));
    vm = await LinuxGuest.boot({ smp: 2 });
    text = await KernelText.of(vm);
  });
  after(async () => {
    await vm?.kill();
    if (existsSync(group)) rmdirSync(group);
  });

  /** A command in the group that has met its breakpoint. */
  async function breaking(): Promise<KvmiProcess> {
    const command = new KvmiProcess(['break', `qemu:${vm.qmp}`, FUNCTION, '-o', 'jsonl']);
    writeFileSync(join(group, 'cgroup.procs'), String(command.child.pid));
    await command.seen('stdout', /rip/);
    return command;
  }

  /** One that other VMs' guards are in is theirs. */
  async function noGroupStays(): Promise<void> {
    await until(() => readText(join(ROOT!, 'kvmi-guard', 'cgroup.procs')) !== '', 'an empty group stays');
  }

  for (const removed of [false, true]) {
    const what = removed ? 'is killed and removed' : 'is killed';
    test(`that ${what}: the guard is in another one, and disarms`, async () => {
      const command = await breaking();
      const journal = journalOf(vm.pid)!;
      assert.match(groupOf(command.child.pid!)!, /kvmi-test-/);
      assert.equal(groupOf(journal.guard.pid), '/kvmi-guard');
      process.kill(journal.guard.pid, 'SIGSTOP');
      writeFileSync(join(group, 'cgroup.kill'), '1');
      await command.ended;
      assert.ok(lives(journal.guard), 'the guard lives');
      if (removed) rmdirSync(group);
      process.kill(journal.guard.pid, 'SIGCONT');
      await nothingLeft(vm, journal);
      await unharmed(vm, text);
      await noGroupStays();
      if (removed) mkdirSync(group);
    });
  }

  test('is left by the guard, and no other one stays', async () => {
    const command = await breaking();
    const journal = journalOf(vm.pid)!;
    command.kill('SIGINT');
    await command.ended;
    await nothingLeft(vm, journal);
    await noGroupStays();
  });
});

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { identityOf, offerPath } from '../../src/drivers/qemu/sharing/offer-path.ts';
import { UnixQmp } from '../../src/drivers/qemu/unix-qmp.ts';
import { lives } from '../../src/system/proc.ts';
import {
  guardsOf,
  journalOf,
  killBoth,
  killedWhilePaused,
  nothingLeft,
  processLives,
  runState,
  unharmed,
  until,
  Victim,
} from '../kit/guarded.ts';
import { KernelText, symbolsOf } from '../kit/kernel-text.ts';
import { KvmiProcess, kvmi } from '../kit/kvmi-process.ts';
import { LinuxGuest, whyNoLinuxGuest } from '../kit/linux-guest.ts';

/* Who dies, and when. */

const FUNCTION = '__x64_sys_getuid';
/** How long a QEMU stands still; ten minutes where there is time. */
const STILL_MS = process.env.KVMI_SOAK ? 600_000 : 20_000;

describe('a host side of a QEMU machine and its guard', { skip: whyNoLinuxGuest() ?? false }, () => {
  let vm: LinuxGuest;
  let text: KernelText;
  let gpa: number;
  let target: string;

  before(async () => {
    vm = await LinuxGuest.boot({ smp: 2 });
    target = `qemu:${vm.qmp}`;
    const { [FUNCTION]: gva } = await symbolsOf(vm, [FUNCTION]);
    const printed = await vm.monitor.hmp(`gva2gpa 0x${gva!.toString(16)}`);
    gpa = Number(/gpa: (0x[0-9a-f]+)/.exec(printed)![1]);
    text = await KernelText.of(vm);
    await vm.run('(while true; do id -u >/dev/null; usleep 5000; done) &');
  });
  after(() => vm?.kill());

  async function armed() {
    const host = new Victim(vm.qmp, gpa);
    const journal = await host.armed(vm.pid);
    return { host, journal };
  }

  test('both are killed at once: `kvmi list` says so, and the next kvmi repairs the VM', async () => {
    const { host, journal } = await armed();
    await killBoth(host);
    const listed = JSON.parse((await kvmi(['list', '-o', 'json'])).stdout);
    const row = listed.rows.find((each: { pid: number }) => each.pid === vm.pid);
    assert.equal(row.damaged, true);
    assert.match(row.reason, new RegExp(`needs repair: kvmi repair ${vm.pid}`));
    const { code, stderr } = await kvmi(['ps', target]);
    assert.equal(code, 0, stderr);
    assert.match(stderr, /kvmi that was killed had left something in the VM: it is repaired/);
    await nothingLeft(vm, journal);
    await unharmed(vm, text);
    assert.doesNotMatch((await kvmi(['ps', target])).stderr, /killed/);
  });

  test('both are killed at once: `kvmi repair` repairs the VM, and leaves it alone before and afterwards', async () => {
    const repair = async (): Promise<string> => {
      const { code, stdout, stderr } = await kvmi(['repair', target, '-o', 'json']);
      assert.equal(code, 0, stderr);
      return JSON.parse(stdout).rows[0].outcome;
    };
    const { host, journal } = await armed();
    assert.equal(await repair(), 'held');
    assert.deepEqual(journalOf(vm.pid), journal);
    await killBoth(host);
    assert.equal(await repair(), 'repaired');
    await nothingLeft(vm, journal);
    await unharmed(vm, text);
    assert.equal(await repair(), 'nothing');
  });

  test('the guard is told to end while it starts: there is one all the same', async () => {
    const host = new Victim(vm.qmp, gpa);
    const ready = host.armed(vm.pid);
    await until(() => guardsOf(host.pid).length > 0, 'a guard starts');
    for (const guard of guardsOf(host.pid)) process.kill(guard, 'SIGTERM');
    const journal = await ready;
    assert.ok(lives(journal.guard));
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.kill(journal.guard.pid, signal);
    await host.kill();
    await nothingLeft(vm, journal);
    await unharmed(vm, text);
  });

  test('the guard is killed: another one takes its place', async () => {
    const { host, journal } = await armed();
    process.kill(journal.guard.pid, 'SIGKILL');
    await until(() => {
      const now = journalOf(vm.pid);
      return now !== undefined && now.guard.pid !== journal.guard.pid;
    }, 'another guard is in the journal');
    const next = journalOf(vm.pid);
    await host.kill();
    await nothingLeft(vm, next);
    await unharmed(vm, text);
  });

  test('the VM is paused by somebody else: it stays paused, and goes on unharmed', async () => {
    const { host, journal } = await armed();
    await killedWhilePaused(vm, text, journal, () => host.kill());
  });

  test('the VM is paused by somebody else during `kvmi break`: no breakpoint is left on any vCPU', async () => {
    const host = new KvmiProcess(['break', target, FUNCTION, '-o', 'jsonl']);
    await host.seen('stdout', /./);
    await killedWhilePaused(vm, text, journalOf(vm.pid), () => host.kill('SIGKILL'));
  });

  test(`QEMU stands still for ${STILL_MS / 1000} s while the host side is killed`, async () => {
    const { host, journal } = await armed();
    process.kill(vm.pid, 'SIGSTOP');
    try {
      await host.kill();
      await new Promise((resolve) => setTimeout(resolve, STILL_MS));
      assert.ok(lives(journal.guard), 'the guard waits');
    } finally {
      process.kill(vm.pid, 'SIGCONT');
    }
    await nothingLeft(vm, journal);
    await unharmed(vm, text);
  });

  test('the gdbstub is lost while QEMU and the host side live', async () => {
    const host = new KvmiProcess(['break', target, FUNCTION, '-c', 'rip']);
    await host.seen('stdout', /rip/);
    const journal = journalOf(vm.pid);
    await vm.monitor.hmp('gdbserver none');
    const { code, stderr } = await host.ended;
    assert.notEqual(code, 0, stderr);
    assert.doesNotMatch(stderr, /^ +at /m, 'no stack trace');
    await nothingLeft(vm, journal);
    await unharmed(vm, text);
    assert.equal(await runState(vm), 'running');
  });

  test('the gdbstub is lost, then the host side is killed: its offer to others goes, too', async () => {
    const { host, journal } = await armed();
    const offer = offerPath(identityOf(vm.qmp))!;
    await vm.monitor.hmp('gdbserver none');
    await until(() => journalOf(vm.pid) === undefined, 'the host side undoes what it did');
    assert.ok(existsSync(offer));
    await host.kill();
    await nothingLeft(vm, journal);
    await until(() => !existsSync(offer), 'the offer is left');
    await unharmed(vm, text);
  });

  test('a stub that nobody uses any more is replaced', async () => {
    const abandoned = join('/dev/shm', `kvmi-qemu-${randomBytes(8).toString('hex')}`);
    mkdirSync(join(abandoned, 'sockets'), { recursive: true });
    try {
      await vm.monitor.hmp(`gdbserver unix:${join(abandoned, 'sockets', 'gdb')},server=on,wait=off`);
      const { code, stderr } = await kvmi(['break', target, FUNCTION, '-n', '2']);
      assert.equal(code, 0, stderr);
      await nothingLeft(vm, undefined);
    } finally {
      rmSync(abandoned, { recursive: true, force: true });
    }
    await unharmed(vm, text);
  });

  test('QEMU is killed: the guard ends, and leaves nothing', async () => {
    const { host, journal } = await armed();
    await host.kill();
    await nothingLeft(vm, journal);
    const again = await armed();
    vm.process.kill('SIGKILL');
    await once(vm.process, 'exit');
    await again.host.kill();
    await until(() => !lives(again.journal.guard), 'the guard ends');
    assert.equal(journalOf(vm.pid), undefined);
    assert.ok(!existsSync(again.journal.workspace));
  });
});

describe('another QEMU at the same QMP socket', { skip: whyNoLinuxGuest() ?? false }, () => {
  const directory = mkdtempSync(join(tmpdir(), 'kvmi-same-'));
  const qmp = join(directory, 'qmp');
  after(() => rmSync(directory, { recursive: true, force: true }));

  async function start(...more: string[]) {
    rmSync(qmp, { force: true });
    const socket = `unix:${qmp},server=on,wait=off`;
    const own = join(directory, `own${more.length}`);
    const args = ['-accel', 'tcg', '-m', '64', '-nodefaults', '-display', 'none', '-qmp', socket];
    const qemu = spawn('qemu-system-x86_64', [...args, '-qmp', `unix:${own},server=on,wait=off`, ...more], {
      stdio: 'ignore',
    });
    await until(() => existsSync(own) && existsSync(qmp), 'QEMU starts');
    const monitor = await UnixQmp.connect(own);
    return {
      qemu,
      monitor,
      async end() {
        monitor.close();
        const exited = once(qemu, 'exit');
        qemu.kill('SIGKILL');
        await exited;
      },
    };
  }

  test('is not touched', async () => {
    const first = await start();
    const host = new Victim(qmp, 0x1000);
    const journal = await host.armed(first.qemu.pid!);
    // The guard looks when the other one is there already.
    process.kill(journal.guard.pid, 'SIGSTOP');
    await host.kill();
    await first.end();
    const second = await start('-S', '-gdb', `unix:${join(directory, 'gdb')},server=on,wait=off`);
    try {
      let events = 0;
      second.monitor.onEvent(() => events++);
      process.kill(journal.guard.pid, 'SIGCONT');
      await until(() => !processLives(journal.guard.pid), 'the guard ends');
      const { status } = (await second.monitor.execute('query-status')) as { status: string };
      assert.equal(status, 'prelaunch');
      const chardevs = (await second.monitor.execute('query-chardev')) as {
        label: string;
        filename: string;
      }[];
      assert.match(chardevs.find(({ label }) => label === 'gdb')!.filename, /^disconnected:/);
      assert.equal(events, 0, 'nothing happened to it');
    } finally {
      await second.end();
    }
  });
});

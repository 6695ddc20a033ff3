import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { EXIT } from '../../src/cli/exit-codes.ts';
import type { JournalState } from '../../src/drivers/qemu/guard/journal.ts';
import { lives } from '../../src/system/proc.ts';
import { journalOf, nothingLeft, unharmed, until } from '../kit/guarded.ts';
import { KernelText, symbolsOf } from '../kit/kernel-text.ts';
import { KvmiProcess } from '../kit/kvmi-process.ts';
import { LinuxGuest, whyNoLinuxGuest } from '../kit/linux-guest.ts';

/* Signals to those about a hooked guest, but for SIGKILL to host side, guard and QEMU: that is in guard-cells.test.ts. */

const FUNCTION = '__x64_sys_getuid';
const TOOL = join(import.meta.dirname, '..', 'end-to-end', 'tool-process.js');
/** How long somebody stands still. */
const STILL_MS = 500;
const ENDING = [
  ['SIGINT', EXIT.interrupted.code],
  ['SIGTERM', EXIT.terminated.code],
  ['SIGHUP', EXIT.terminated.code],
] as const;

async function boot(): Promise<LinuxGuest> {
  const vm = await LinuxGuest.boot({ smp: 2 });
  await vm.run('(while true; do id -u >/dev/null; usleep 5000; done) &');
  return vm;
}

/** `kvmi break`, which has met its breakpoint. */
async function breaking(vm: LinuxGuest): Promise<{ host: KvmiProcess; journal: JournalState }> {
  const host = new KvmiProcess(['break', `qemu:${vm.qmp}`, FUNCTION, '-o', 'jsonl']);
  await host.seen('stdout', /rip/, 2);
  return { host, journal: journalOf(vm.pid)! };
}

/** Those who are stopped are left so for a while, as far as that changes anything. */
async function standStill(pids: readonly number[]): Promise<void> {
  for (const pid of pids) process.kill(pid, 'SIGSTOP');
  await sleep(STILL_MS);
  for (const pid of pids) process.kill(pid, 'SIGCONT');
}

describe('signals to host side, guard and tool of a QEMU machine', {
  skip: whyNoLinuxGuest() ?? false,
}, () => {
  let vm: LinuxGuest;
  let text: KernelText;
  let gva: bigint;

  before(async () => {
    vm = await boot();
    gva = (await symbolsOf(vm, [FUNCTION]))[FUNCTION]!;
    text = await KernelText.of(vm);
  });
  after(() => vm?.kill());

  /** The host side goes on as before, and has the same guard. */
  async function goesOn(host: KvmiProcess, journal: JournalState): Promise<void> {
    const { length } = [...host.stdout.matchAll(/rip/g)];
    await host.seen('stdout', /rip/, length + 3);
    assert.deepEqual(journalOf(vm.pid)?.guard, journal.guard);
    assert.ok(lives(journal.guard));
  }

  async function asBefore(journal: JournalState, when: string): Promise<void> {
    await nothingLeft(vm, journal, when);
    await unharmed(vm, text, when);
    const { status } = (await vm.monitor.execute('query-status')) as { status: string };
    assert.equal(status, 'running', when);
  }

  const WHOM: readonly [string, (host: KvmiProcess, journal: JournalState) => number[]][] = [
    ['the host side', (host) => [host.child.pid!]],
    ['the guard', (_, journal) => [journal.guard.pid]],
    ['both', (host, journal) => [host.child.pid!, journal.guard.pid]],
    ['QEMU', () => [vm.pid]],
  ];

  for (const [whom, pids] of WHOM) {
    test(`stopped and continued: ${whom}: it goes on`, async () => {
      const { host, journal } = await breaking(vm);
      await standStill(pids(host, journal));
      await goesOn(host, journal);
      host.kill('SIGINT');
      assert.equal((await host.ended).code, EXIT.interrupted.code, host.stderr);
      await asBefore(journal, whom);
    });
  }

  for (const [signal, code] of ENDING) {
    test(`${signal} to the host side: it unhooks and ends`, async () => {
      const { host, journal } = await breaking(vm);
      host.kill(signal);
      assert.equal((await host.ended).code, code, host.stderr);
      assert.match(host.stderr, /the probe is removed/);
      assert.ok(!existsSync(journal.workspace), 'the host side itself has left nothing');
      await asBefore(journal, signal);
    });
  }

  test('the guard is told to end: it stays, and undoes what a killed host side leaves', async () => {
    const { host, journal } = await breaking(vm);
    for (const [signal] of ENDING) process.kill(journal.guard.pid, signal);
    await goesOn(host, journal);
    host.kill('SIGKILL');
    await host.ended;
    await asBefore(journal, 'the guard was told to end');
  });

  test('both are told to end: the host side unhooks and ends, then the guard', async () => {
    const { host, journal } = await breaking(vm);
    for (const pid of [journal.guard.pid, host.child.pid!]) process.kill(pid, 'SIGTERM');
    assert.equal((await host.ended).code, EXIT.terminated.code, host.stderr);
    await asBefore(journal, 'both were told to end');
  });

  /** `kvmi hook` with a tool of its own, which keeps an int3 and pauses and steps vCPUs. */
  async function hooked(): Promise<{ tool: ChildProcess; host: KvmiProcess; journal: JournalState }> {
    const address = `unix:${join(vm.directory, 'tool')}`;
    const tool = spawn(process.execPath, [TOOL, address, `0x${gva.toString(16)}`], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    await once(tool.stdout!, 'data');
    const host = new KvmiProcess(['hook', `qemu:${vm.qmp}`, '--tool', address]);
    await once(tool.stdout!, 'data');
    return { tool, host, journal: journalOf(vm.pid)! };
  }

  for (const signal of ['SIGKILL', 'SIGTERM'] as const) {
    test(`${signal} to the tool: the VM is unhooked`, async () => {
      const { tool, host, journal } = await hooked();
      tool.kill(signal);
      await host.ended;
      assert.match(host.stderr, /unhooked: the tool hung up/);
      await asBefore(journal, signal);
    });
  }

  test('stopped and continued: the tool: it goes on', async () => {
    const { tool, host, journal } = await hooked();
    await standStill([tool.pid!]);
    await vm.nextTicks(1, 60_000);
    assert.ok(lives(journal.guard) && host.child.exitCode === null, 'it is hooked as before');
    assert.notDeepEqual(journalOf(vm.pid)!.patches, [], 'its int3 is there');
    tool.kill('SIGKILL');
    await host.ended;
    await asBefore(journal, 'the tool was stopped');
  });
});

test('QEMU is told to end while it is hooked: kvmi says so, and leaves nothing', {
  skip: whyNoLinuxGuest() ?? false,
}, async () => {
  const vm = await boot();
  try {
    const { host, journal } = await breaking(vm);
    vm.process.kill('SIGTERM');
    const { code, stderr } = await host.ended;
    assert.equal(code, EXIT.error.code, stderr);
    assert.match(stderr, /the VM is gone/);
    await until(() => !lives(journal.guard), 'a guard is left');
    assert.equal(journalOf(vm.pid), undefined);
    assert.ok(!existsSync(journal.workspace), 'the workspace is left');
  } finally {
    await vm.kill();
  }
});

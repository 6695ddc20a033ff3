import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { after, afterEach, before, beforeEach, describe, test } from 'node:test';
import { deferred } from '../../src/awaitable.ts';
import { openQemu, type QemuMachine } from '../../src/drivers/qemu/index.ts';
import { introspect } from '../../src/introspect.ts';
import type { Guest } from '../../src/tool/index.ts';
import { syscallProgram } from '../kit/elf.ts';
import { killBoth, nothingLeft, unharmed, until, Victim } from '../kit/guarded.ts';
import { KernelText, symbolsOf } from '../kit/kernel-text.ts';
import { LinuxGuest, whyNoLinuxGuest } from '../kit/linux-guest.ts';
import { RecordingHandler } from '../kit/recording-handler.ts';
import { addSnapshotDisk, snapshotJob } from '../kit/snapshot-disk.ts';

/* Others – somebody at the VM's other monitor – copy its memory while it is hooked, or put an older one in its place. */

/** A system call that no program makes by itself, and the kernel's function for it. */
const SYSCALL = 146;
const FUNCTION = '__x64_sys_sched_get_priority_max';
const CALLS = 5;
const NODE = 'kvmi-int3-in-guest-memory';
const OPTIONS = { smp: 2, files: [{ path: 'bin/call', content: syscallProgram(SYSCALL, CALLS) }] };

describe('others copy the memory of a hooked VM', { skip: whyNoLinuxGuest() ?? false }, () => {
  let vm: LinuxGuest;
  let text: KernelText;
  let address: bigint;
  let gpa: number;
  let machine: QemuMachine;
  let guest: Guest;

  before(async () => {
    vm = await LinuxGuest.boot(OPTIONS);
    address = (await symbolsOf(vm, [FUNCTION]))[FUNCTION]!;
    const printed = await vm.monitor.hmp(`gva2gpa 0x${address.toString(16)}`);
    gpa = Number(/gpa: (0x[0-9a-f]+)/.exec(printed)![1]);
    text = await KernelText.of(vm);
    await addSnapshotDisk(vm);
    await vm.monitor.execute('migrate-set-parameters', { 'max-bandwidth': 1e10 });
  });
  after(() => vm?.kill());
  beforeEach(async () => {
    machine = await openQemu({ qmp: vm.qmp });
  });
  afterEach(async () => {
    await guest?.detach();
    await machine.close();
    if ((await status()) === 'postmigrate') await vm.monitor.execute('cont');
    await unharmed(vm, text);
    await vm.run('call');
    await nothingLeft(vm, undefined);
    await asBefore();
  });

  async function hook(): Promise<Guest> {
    guest = await introspect(machine);
    return guest;
  }

  /** The guest is unhooked, for a reason that says `what`. */
  async function unhooked(what: RegExp): Promise<void> {
    assert.match(String((await guest.closed)?.message), what);
  }

  async function status(): Promise<string> {
    return ((await vm.monitor.execute('query-status')) as { status: string }).status;
  }

  async function running(): Promise<boolean> {
    return ((await vm.monitor.execute('query-status')) as { running: boolean }).running;
  }

  /** What kvmi has changed in QEMU. */
  async function asBefore(): Promise<void> {
    const capabilities = (await vm.monitor.execute('query-migrate-capabilities')) as {
      capability: string;
      state: boolean;
    }[];
    assert.equal(capabilities.find(({ capability }) => capability === 'events')!.state, false);
    assert.deepEqual(await ownNodes(), []);
  }

  async function ownNodes(): Promise<string[]> {
    const nodes = (await vm.monitor.execute('query-named-block-nodes')) as { 'node-name': string }[];
    return nodes.map((node) => node['node-name']).filter((name) => name.startsWith('kvmi'));
  }

  /** A probe at which a vCPU is held now, and what lets it go. */
  async function held(): Promise<() => Promise<void>> {
    const [hit, release] = [deferred<void>(), deferred<void>()];
    await guest.probes.at(address, () => {
      hit.resolve();
      return release.promise;
    });
    const calling = vm.run('call');
    await hit.promise;
    return async () => {
      release.resolve();
      await calling;
    };
  }

  test('savevm while probes are set: the snapshot runs when they are gone', async () => {
    await hook();
    const probe = await guest.probes.at(address, () => {});
    await vm.run('call');
    assert.equal(await vm.monitor.hmp('savevm probed'), '');
    await vm.run('call');
    assert.equal(probe.hits, 2 * CALLS, 'the probe stays');
    await guest.detach();
    assert.equal(await vm.monitor.hmp('loadvm probed'), '');
    await unharmed(vm, text);
    await vm.run('call');
  });

  test('savevm while a vCPU is held: the snapshot runs', async () => {
    await hook();
    const release = await held();
    assert.equal(await vm.monitor.hmp('savevm held'), '');
    await release();
    await guest.detach();
    assert.equal(await vm.monitor.hmp('loadvm held'), '');
    await unharmed(vm, text);
    await vm.run('call');
    assert.equal(await status(), 'running');
  });

  for (const order of [
    ['stop', 'savevm'],
    ['savevm', 'stop'],
    ['savevm', 'savevm'],
  ]) {
    test(`${order.join(' and ')} while a vCPU is held: what others want is in force`, async () => {
      await hook();
      const release = await held();
      for (const what of order) {
        if (what === 'stop') await vm.monitor.execute('stop');
        else assert.equal(await vm.monitor.hmp('savevm again'), '');
      }
      const released = release();
      await guest.detach();
      assert.equal(await status(), order.includes('stop') ? 'paused' : 'running');
      if (order.includes('stop')) await vm.monitor.execute('cont');
      await released;
    });
  }

  test('snapshot-save and snapshot-load while probes are set: they stay', async () => {
    await hook();
    const probe = await guest.probes.at(address, () => {});
    await snapshotJob(vm, 'snapshot-save', 'job');
    await vm.run('call');
    await snapshotJob(vm, 'snapshot-load', 'job');
    await vm.run('call');
    assert.equal(probe.hits, 2 * CALLS);
    assert.equal(await vm.monitor.hmp('loadvm job'), '');
    await vm.run('call');
    assert.equal(probe.hits, 3 * CALLS);
  });

  test('loadvm while a vCPU is held: what the tool wanted of it is dropped', async () => {
    assert.equal(await vm.monitor.hmp('savevm idle'), '');
    await hook();
    const [hit, release] = [deferred<void>(), deferred<void>()];
    const probe = await guest.probes.at(address, async ({ registers }) => {
      if (probe.hits > 1) return;
      registers.rip = 0xbadn;
      hit.resolve();
      await release.promise;
    });
    // There is no answer: the guest goes back to before it was asked.
    vm.run('call', 1).catch(() => {});
    await hit.promise;
    assert.equal(await vm.monitor.hmp('loadvm idle'), '');
    release.resolve();
    // QEMU cannot be asked whether it was this or a `stop`.
    await vm.monitor.execute('cont');
    await vm.run('call');
    assert.equal(probe.hits, 1 + CALLS);
  });

  test('a snapshot that cannot be loaded: QEMU leaves the VM stopped, and kvmi does, too', async () => {
    await hook();
    const probe = await guest.probes.at(address, () => {});
    assert.match(await vm.monitor.hmp('loadvm missing'), /missing/);
    await guest.vcpus[0]!.registers();
    assert.equal(await running(), false);
    await vm.monitor.execute('cont');
    await vm.run('call');
    assert.equal(probe.hits, CALLS);
  });

  test('with int3 in guest memory savevm and loadvm are refused, and the guest runs on', async () => {
    await vm.monitor.hmp('savevm before');
    await hook();
    const breakpoint = await guest.breakpoints.set(address, () => {});
    assert.match(await vm.monitor.hmp('savevm armed'), new RegExp(NODE));
    assert.match(await vm.monitor.hmp('loadvm before'), new RegExp(NODE));
    await vm.run('call');
    assert.equal(breakpoint.hits, CALLS);
    await breakpoint.remove();
    assert.ok(!(await ownNodes()).includes(NODE));
    assert.equal(await vm.monitor.hmp('savevm disarmed'), '');
  });

  test('snapshot-save with int3 in guest memory: the tool is told that it is not to be used', async () => {
    await hook();
    await guest.breakpoints.set(address, () => {});
    await snapshotJob(vm, 'snapshot-save', 'armed');
    await unhooked(/snapshot .* is not to be used/);
  });

  test('a host side with int3 is killed: its guard takes back what it changed in QEMU', async () => {
    const host = new Victim(vm.qmp, gpa);
    const journal = await host.armed(vm.pid);
    assert.ok((await ownNodes()).includes(NODE));
    await host.kill();
    await nothingLeft(vm, journal);
    await asBefore();
  });

  test('a host side with int3 and its guard are killed: the next one does', async () => {
    const host = new Victim(vm.qmp, gpa);
    await host.armed(vm.pid);
    await killBoth(host);
    await machine.close();
    machine = await openQemu({ qmp: vm.qmp });
    await asBefore();
  });

  /** Migrates the VM, and lets what came out run in a QEMU of its own. */
  async function migrate(): Promise<void> {
    await vm.monitor.execute('migrate', { uri: `exec:cat >${join(vm.directory, 'stream')}` });
    await vm.status('query-migrate', 'completed');
  }

  async function destinationRuns(): Promise<void> {
    const other = await LinuxGuest.boot({ ...OPTIONS, incoming: join(vm.directory, 'stream') });
    try {
      await other.run('call');
      await unharmed(other, text);
    } finally {
      await other.kill();
    }
  }

  for (const kind of ['probes', 'int3', 'a vCPU that is held'] as const) {
    test(`a migration of a VM with ${kind}: the destination runs, the source stays where it is`, async () => {
      await hook();
      if (kind === 'int3') await guest.breakpoints.set(address, () => {});
      const release = kind === 'a vCPU that is held' ? await held() : undefined;
      if (kind === 'probes') await guest.probes.at(address, () => {});
      await migrate();
      await unhooked(/is being migrated, or saved: it is unhooked/);
      assert.equal(await status(), 'postmigrate');
      await destinationRuns();
      assert.equal(await status(), 'postmigrate');
      await vm.monitor.execute('cont');
      await release?.();
    });
  }

  test('a migration: the tool is asked to unhook, and can do nothing in the VM afterwards', async () => {
    const handler = new RecordingHandler();
    await machine.attach(handler);
    await machine.vcpus[0]!.request();
    await migrate();
    await until(() => handler.closedWith !== undefined, 'the handler is told of the end');
    assert.deepEqual(handler.reasons, ['migrate']);
    assert.equal((handler.closedWith as { code?: string }).code, 'E_MIGRATION');
    const vcpu = machine.vcpus[0]!;
    await assert.rejects(async () => machine.arm({ kind: 'breakpoint', vcpu }), { code: 'E_MIGRATION' });
    await assert.rejects(async () => machine.memory.write(gpa, Uint8Array.of(0xcc)), { code: 'E_MIGRATION' });
  });

  test('a migration that is over before kvmi could do anything: the copy is not to be used', async () => {
    await hook();
    await guest.breakpoints.set(address, () => {});
    const over = join(vm.directory, 'over');
    await vm.monitor.execute('migrate', { uri: `exec:cat >/dev/null; touch ${over}` });
    // This process does nothing until it is over.
    execFileSync('sh', ['-c', `until [ -e ${over} ]; do sleep 0.1; done; sleep 0.5`]);
    await unhooked(/the copy is not to be used/);
    assert.equal(await status(), 'postmigrate');
  });

  test('a VM that is being migrated is not hooked', async () => {
    const set = (state: boolean) =>
      vm.monitor.execute('migrate-set-capabilities', {
        capabilities: [{ capability: 'pause-before-switchover', state }],
      });
    await set(true);
    await vm.monitor.execute('migrate', { uri: 'exec:cat >/dev/null' });
    await vm.status('query-migrate', 'pre-switchover');
    await assert.rejects(async () => machine.attach(new RecordingHandler()), { code: 'E_BUSY' });
    await vm.monitor.execute('migrate_cancel');
    await until(async () => {
      const { status } = (await vm.monitor.execute('query-migrate')) as { status: string };
      return status === 'cancelled';
    }, 'the migration is cancelled');
    await set(false);
    await machine.attach(new RecordingHandler());
    await machine.detach();
  });
});

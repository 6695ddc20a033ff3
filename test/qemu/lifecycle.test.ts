import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, afterEach, before, describe, test } from 'node:test';
import { deferred } from '../../src/awaitable.ts';
import { openQemu, type QemuMachine } from '../../src/drivers/qemu/index.ts';
import { introspect } from '../../src/introspect.ts';
import type { Guest } from '../../src/tool/index.ts';
import { debianKernel } from '../kit/debian-kernel.ts';
import { syscallProgram } from '../kit/elf.ts';
import { nothingLeft, unharmed, until } from '../kit/guarded.ts';
import type { GuestFile } from '../kit/initramfs.ts';
import { KernelText, symbolsOf } from '../kit/kernel-text.ts';
import { LinuxGuest, type LinuxGuestOptions, whyNoLinuxGuest } from '../kit/linux-guest.ts';
import { RecordingHandler } from '../kit/recording-handler.ts';

/* What becomes of a VM while it is hooked: it grows, is reset, ends, panics. */

/** System calls that no program makes by itself, and the kernel's functions for them. */
const PROBED = { number: 146, name: '__x64_sys_sched_get_priority_max' };
const BROKEN = { number: 147, name: '__x64_sys_sched_get_priority_min' };
const CALLS = 5;
/** Under TCG a kernel that has just got another vCPU may do nothing for tens of seconds, hooked or not. */
const SLOW_MS = 180_000;
const BOOT_MS = 180_000;
const DIMM = { gpa: 0x1_0000_0000, size: 128 << 20 };
/** In the order in which they can be loaded. */
const BALLOON = ['virtio_ring', 'virtio', 'virtio_pci_legacy_dev', 'virtio_pci_modern_dev', 'virtio_pci'];
const PANIC = ['pvpanic', 'pvpanic-mmio'];

function options(): LinuxGuestOptions {
  const kernel = debianKernel();
  if (typeof kernel === 'string') throw new Error(kernel);
  const module = (directory: string) => (name: string) => ({
    path: `lib/${name}.ko`,
    content: join(kernel.modules, 'kernel/drivers', directory, `${name}.ko`),
  });
  const files: GuestFile[] = [
    { path: 'bin/probed', content: syscallProgram(PROBED.number, CALLS) },
    { path: 'bin/broken', content: syscallProgram(BROKEN.number, CALLS) },
    ...[...BALLOON, 'virtio_balloon'].map(module('virtio')),
    ...PANIC.map(module('misc/pvpanic')),
  ];
  return {
    append: 'nokaslr',
    files,
    args: [
      ...['-smp', '2,maxcpus=4', '-m', '256M,slots=2,maxmem=1G', '-action', 'panic=pause'],
      ...['-device', 'pvpanic', '-device', 'virtio-balloon-pci,id=balloon0'],
    ],
  };
}

const load = (vm: LinuxGuest, modules: readonly string[]): Promise<string> =>
  vm.run(modules.map((name) => `insmod /lib/${name}.ko`).join(' && '));

async function statusOf(vm: LinuxGuest): Promise<string> {
  return ((await vm.monitor.execute('query-status')) as { status: string }).status;
}

describe('a hooked VM grows and shrinks', { skip: whyNoLinuxGuest() ?? false }, () => {
  let vm: LinuxGuest;
  /** The beginnings of both functions: a kernel may change its own code elsewhere when it gets another vCPU. */
  let code: Buffer[];
  let addresses: Record<string, bigint>;
  let machine: QemuMachine;
  let guest: Guest;

  before(async () => {
    vm = await LinuxGuest.boot(options());
    addresses = await symbolsOf(vm, [PROBED.name, BROKEN.name]);
    code = await codeNow();
  });
  after(() => vm?.kill());
  afterEach(async () => {
    await guest.detach();
    await machine.close();
    await vm.run('probed && broken', SLOW_MS);
    await vm.nextTicks(2, SLOW_MS);
    assert.deepEqual(await codeNow(), code);
    await nothingLeft(vm, undefined);
    assert.deepEqual(
      vm.log.filter((line) => /BUG|Oops|panic|int3/.test(line)),
      [],
    );
  });

  function codeNow(): Promise<Buffer[]> {
    const file = join(vm.directory, 'code');
    return Promise.all(
      Object.values(addresses).map(async (address) => {
        await vm.monitor.hmp(`memsave 0x${address.toString(16)} 32 "${file}-${address}"`);
        return readFileSync(`${file}-${address}`);
      }),
    );
  }

  /** A probe, and an int3 elsewhere. `hits`: how often each vCPU came to the probe. */
  async function hook() {
    machine = await openQemu({ qmp: vm.qmp });
    guest = await introspect(machine);
    const hits: number[] = [];
    await guest.probes.at(addresses[PROBED.name]!, ({ vcpu }) => {
      hits[vcpu.index] = (hits[vcpu.index] ?? 0) + 1;
    });
    const breakpoint = await guest.breakpoints.set(addresses[BROKEN.name]!, () => {});
    return { hits, breakpoint };
  }

  /** Plugs a vCPU in, and waits until the guest runs on it. */
  async function plug(index: number): Promise<void> {
    const props = { 'socket-id': 0, 'core-id': index, 'thread-id': 0 };
    await vm.monitor.execute('device_add', { driver: 'qemu64-x86_64-cpu', id: `cpu${index}`, ...props });
    await until(() => machine.vcpus.length > index, `vCPU ${index} is known`);
    await vm.run('for cpu in /sys/devices/system/cpu/cpu[2-9]; do echo 1 >$cpu/online; done', SLOW_MS);
  }

  /** On the vCPU that the guest numbers last. */
  const runOnLast = (program: string): Promise<string> =>
    vm.run(
      `last=$(ls -d /sys/devices/system/cpu/cpu[0-9] | tail -n 1 | tr -dc 0-9); taskset $(printf %x $((1 << last))) ${program}`,
      SLOW_MS,
    );

  test('a balloon takes memory and gives it back', async () => {
    await load(vm, [...BALLOON, 'virtio_balloon']);
    const { hits, breakpoint } = await hook();
    for (const [i, value] of [160 << 20, 256 << 20].entries()) {
      await vm.monitor.execute('balloon', { value });
      await until(async () => {
        const { actual } = (await vm.monitor.execute('query-balloon')) as { actual: number };
        return actual === value;
      }, `the balloon leaves ${value} bytes`);
      await vm.run('taskset 1 probed && taskset 1 broken', SLOW_MS);
      assert.deepEqual([hits[0], breakpoint.hits], [(i + 1) * CALLS, (i + 1) * CALLS]);
    }
  });

  test('a vCPU is plugged in: a probe is hit on it, an int3 does not harm it', async () => {
    const { hits, breakpoint } = await hook();
    await vm.run('taskset 1 probed && taskset 1 broken', SLOW_MS);
    assert.deepEqual([hits, breakpoint.hits], [[CALLS], CALLS]);
    // Numbers may have gaps.
    await plug(3);
    await runOnLast('probed');
    assert.deepEqual([hits[0], hits[3]], [CALLS, CALLS]);
    // A tool of dialect v12 is not told of a new vCPU, so it has no events of it.
    await runOnLast('broken');
    assert.equal(breakpoint.hits, CALLS);
  });

  test('hooked when there is a gap in the numbers: what is there is seen', async () => {
    const { hits, breakpoint } = await hook();
    assert.equal(machine.vcpus.length, 4);
    await vm.run('taskset 1 probed && taskset 1 broken', SLOW_MS);
    await runOnLast('probed');
    await runOnLast('broken');
    assert.deepEqual([hits[0], hits[3], breakpoint.hits], [CALLS, CALLS, 2 * CALLS]);
  });

  test('memory is plugged in and out: it can be read and written as long as it is there', async () => {
    await hook();
    const bytes = Buffer.from('memory that was not there before');
    await assert.rejects(async () => guest.memory.readBytes(DIMM.gpa, bytes.length));
    await vm.monitor.execute('object-add', { 'qom-type': 'memory-backend-ram', id: 'dimm', size: DIMM.size });
    await vm.monitor.execute('device_add', { driver: 'pc-dimm', id: 'dimm0', memdev: 'dimm' });
    const known = () => machine.memory.regions.some(({ gpa }) => gpa === DIMM.gpa);
    await until(known, 'the memory is known');
    await guest.memory.write(DIMM.gpa + 0x1000, bytes);
    assert.deepEqual(Buffer.from(await guest.memory.readBytes(DIMM.gpa + 0x1000, bytes.length)), bytes);
    const file = join(vm.directory, 'dimm');
    await vm.monitor.hmp(`pmemsave ${DIMM.gpa + 0x1000} ${bytes.length} "${file}"`);
    assert.deepEqual(readFileSync(file), bytes);
    await vm.monitor.execute('device_del', { id: 'dimm0' });
    await until(() => !known(), 'the memory goes');
    await assert.rejects(async () => guest.memory.readBytes(DIMM.gpa, bytes.length));
    await vm.run('probed && broken');
  });

  // The last one: QEMU 7.2 may crash when a vCPU is plugged in after one was pulled out, hooked or not.
  test('a vCPU is pulled out: the others are seen as before', async () => {
    const { hits, breakpoint } = await hook();
    await runOnLast('probed');
    await vm.monitor.execute('device_del', { id: 'cpu3' });
    await until(async () => {
      const there = (await vm.monitor.execute('query-cpus-fast')) as unknown[];
      return there.length === 2;
    }, 'the vCPU goes');
    await vm.run('taskset 1 probed && taskset 1 broken', SLOW_MS);
    assert.deepEqual([hits[0], hits[3], breakpoint.hits], [CALLS, CALLS, CALLS]);
  });
});

describe('a hooked VM is reset or ends', { skip: whyNoLinuxGuest() ?? false }, () => {
  let vm: LinuxGuest;
  let machine: QemuMachine;
  let addresses: Record<string, bigint> | undefined;

  async function boot(): Promise<Record<string, bigint>> {
    vm = await LinuxGuest.boot(options());
    machine = await openQemu({ qmp: vm.qmp });
    addresses ??= await symbolsOf(vm, [PROBED.name, BROKEN.name]);
    return addresses;
  }
  afterEach(async () => {
    await machine.close();
    await vm.kill();
  });

  async function set(handler: RecordingHandler): Promise<void> {
    await machine.attach(handler);
    await machine.probes!.set(addresses![PROBED.name]!, () => {});
    await vm.run('probed');
  }

  test('a reset while a vCPU is held whose registers are to be changed: the guest boots again', async () => {
    const at = await boot();
    const text = await KernelText.of(vm);
    const guest = await introspect(machine);
    const [hit, release] = [deferred<void>(), deferred<void>()];
    const probe = await guest.probes.at(at[PROBED.name]!, async ({ registers }) => {
      if (probe.hits > 1) return;
      registers.rip = 0xbadn;
      hit.resolve();
      await release.promise;
    });
    await guest.breakpoints.set(at[BROKEN.name]!, () => {});
    // There is no answer: nothing runs any more.
    vm.run('probed', 1).catch(() => {});
    await hit.promise;
    await vm.monitor.execute('system_reset');
    release.resolve();
    await vm.nextTicks(1, BOOT_MS);
    await vm.run('probed && broken');
    assert.equal(probe.hits, 1 + CALLS, 'the probe is still there');
    await guest.detach();
    await vm.run('broken');
    await unharmed(vm, text);
    await nothingLeft(vm, undefined);
  });

  test('the guest is shut down: the tool is asked to unhook, QEMU ends, nothing is wrong', async () => {
    await boot();
    const handler = new RecordingHandler();
    await set(handler);
    const ended = once(vm.process, 'exit');
    vm.run('poweroff -f', 1).catch(() => {});
    await ended;
    await until(() => handler.closedWith !== undefined, 'the handler is told of the end');
    assert.deepEqual([handler.reasons, handler.closedWith], [['shutdown'], 'closed']);
  });

  test('the guest is shut down and QEMU stays: it is left as it is', async () => {
    await boot();
    await vm.monitor.execute('set-action', { shutdown: 'pause' });
    const handler = new RecordingHandler();
    await set(handler);
    vm.run('poweroff -f', 1).catch(() => {});
    await vm.status('query-status', 'shutdown');
    await machine.detach();
    await nothingLeft(vm, undefined);
    assert.equal(await statusOf(vm), 'shutdown');
  });

  test('the guest panics and QEMU pauses it: it can be looked at, and stays as it is', async () => {
    await boot();
    await load(vm, PANIC);
    await set(new RecordingHandler());
    vm.run('echo c >/proc/sysrq-trigger', 1).catch(() => {});
    await vm.status('query-status', 'guest-panicked');
    await machine.vcpus[0]!.request();
    await machine.detach();
    await nothingLeft(vm, undefined);
    assert.equal(await statusOf(vm), 'guest-panicked');
  });

  test('the guest panics and nobody takes notice: it can be looked at, and runs on as it did', async () => {
    await boot();
    await set(new RecordingHandler());
    vm.run('echo c >/proc/sysrq-trigger', 1).catch(() => {});
    await until(() => vm.log.some((line) => /Kernel panic/.test(line)), 'the kernel panics');
    await machine.vcpus[0]!.request();
    await machine.detach();
    await nothingLeft(vm, undefined);
    assert.equal(await statusOf(vm), 'running');
  });
});

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { after, afterEach, before, beforeEach, describe, test } from 'node:test';
import { deferred } from '../../src/awaitable.ts';
import { openQemu, type QemuMachine } from '../../src/drivers/qemu/index.ts';
import { introspect } from '../../src/introspect.ts';
import type { Guest } from '../../src/tool/index.ts';
import { int3Program, ownInt3Program, syscallProgram } from '../kit/elf.ts';
import { until } from '../kit/guarded.ts';
import { TestHandler } from '../kit/handler.ts';
import { KernelText, symbolsOf } from '../kit/kernel-text.ts';
import { LinuxGuest, whyNoLinuxGuest } from '../kit/linux-guest.ts';
import { addSnapshotDisk } from '../kit/snapshot-disk.ts';

/** A system call that no program makes by itself, the kernel's function for it, and how often a program makes it. */
const SYSCALL = 146;
const FUNCTION = '__x64_sys_sched_get_priority_max';
const CALLS = 30;
const PATIENCE_MS = 60_000;
/** Enough of the function that nothing else looks like it. */
const PIECE = 24;

describe('probes of QEMU under TCG, -smp 2', { skip: whyNoLinuxGuest() ?? false }, () => {
  let vm: LinuxGuest;
  let text: KernelText;
  let address: bigint;
  let machine: QemuMachine;
  let guest: Guest;
  let errors: Error[];

  before(async () => {
    vm = await LinuxGuest.boot({
      smp: 2,
      files: [
        { path: 'bin/call', content: syscallProgram(SYSCALL, CALLS) },
        { path: 'bin/int3', content: int3Program(1) },
        { path: 'bin/own-int3', content: ownInt3Program(CALLS) },
      ],
    });
    address = (await symbolsOf(vm, [FUNCTION]))[FUNCTION]!;
    text = await KernelText.of(vm);
  });
  after(() => vm?.kill());
  beforeEach(async () => {
    machine = await openQemu({ qmp: vm.qmp });
    errors = [];
    guest = await introspect(machine, { onError: (error) => errors.push(error) });
  });
  afterEach(async () => {
    await guest.detach();
    await machine.close();
    await vm.nextTicks(2, PATIENCE_MS);
    assert.deepEqual(await text.changes(vm), [], 'kernel text is as before');
    assert.deepEqual(
      vm.log.filter((line) => /BUG|Oops|panic|int3/.test(line)),
      [],
    );
    assert.deepEqual(errors, []);
  });

  /** The program on both vCPUs at once. */
  const callOnBoth = (): Promise<string> =>
    vm.run('taskset 1 call & P=$!; taskset 2 call && wait $P', 2 * PATIENCE_MS);

  /** The beginning of the function, as QEMU itself shows it. */
  async function piece(): Promise<Buffer> {
    const file = join(vm.directory, 'piece');
    await vm.monitor.hmp(`memsave 0x${address.toString(16)} ${PIECE} "${file}"`);
    return readFileSync(file);
  }

  test('every call on both vCPUs is seen, and the code stays as it is', async () => {
    const original = await piece();
    const hits = [0, 0];
    const probe = await guest.probes.at(address, async ({ vcpu, registers }) => {
      hits[vcpu.index]!++;
      assert.equal(registers.rip, address);
      // Commands for the vCPU are carried out while it is held.
      const now = await vcpu.registers();
      assert.deepEqual([now.rip, now.rdi], [registers.rip, registers.rdi]);
      assert.deepEqual(Buffer.from(await vcpu.memory.readBytes(address, PIECE)), original);
    });
    assert.equal(probe.kind, 'gdbstub');
    await callOnBoth();
    assert.deepEqual(await piece(), original, 'while it is set');
    assert.deepEqual(hits, [CALLS, CALLS]);
    await probe.remove();
    await vm.nextTicks(1, PATIENCE_MS);
    let stops = 0;
    vm.monitor.onEvent(({ name }) => {
      if (name === 'STOP') stops++;
    });
    await callOnBoth();
    assert.equal(probe.hits, 2 * CALLS, 'none after it was removed');
    assert.equal(stops, 0, 'nothing stops the VM any more');
  });

  test('two at one address, one of which removes itself', async () => {
    const staying = await guest.probes.at(address, () => {});
    const leaving = await guest.probes.at(address, async ({ probe }) => {
      if (probe.hits === 5) await probe.remove();
    });
    await callOnBoth();
    assert.deepEqual([staying.hits, leaving.hits], [2 * CALLS, 5]);
  });

  test('a vCPU is put elsewhere: the function is not executed', async () => {
    const probe = await guest.probes.at(address, async ({ vcpu, registers }) => {
      // As a `ret` would.
      registers.rip = Buffer.from(await vcpu.memory.readBytes(registers.rsp, 8)).readBigUInt64LE();
      registers.rsp += 8n;
    });
    const inside = await guest.probes.at(address + 5n, () => {});
    await callOnBoth();
    assert.deepEqual([probe.hits, inside.hits], [2 * CALLS, 0]);
  });

  test("in front of the guest's own int3 and of the handler that QEMU's #BP is caught at", async () => {
    const symbols = await symbolsOf(vm, ['asm_exc_int3']);
    let events = 0;
    guest.on('BREAKPOINT', () => {
      events++;
      return 'continue';
    });
    await guest.enable('BREAKPOINT');
    const handler = await guest.probes.at(symbols.asm_exc_int3!, () => {});
    // `int3` of the program is at its fifth byte, and is never mapped in the kernel.
    const own = await guest.probes.at(0x40007dn, () => {});
    await assert.rejects(vm.run('int3'), /status 133/, 'SIGTRAP');
    assert.deepEqual([own.hits, events, handler.hits], [1, 1, 1]);
    await vm.run('own-int3');
    assert.deepEqual([events, handler.hits], [1 + CALLS, 1 + CALLS]);
  });

  test('a #BP that the tool takes does not come to the handler', async () => {
    const symbols = await symbolsOf(vm, ['asm_exc_int3']);
    const handler = await guest.probes.at(symbols.asm_exc_int3!, () => {});
    guest.on('BREAKPOINT', ({ registers, rip }) => {
      registers.rip = rip + 1n;
      return { action: 'retry', registers };
    });
    await guest.enable('BREAKPOINT');
    await vm.run('int3');
    assert.equal(handler.hits, 0);
  });

  test('a probe on an instruction whose control register is trapped', async () => {
    const first = deferred<bigint>();
    let events = 0;
    guest.on('CR', ({ rip }) => {
      events++;
      first.resolve(rip);
    });
    await guest.enable('CR');
    for (const vcpu of guest.vcpus) await vcpu.controlCr(3, true);
    const rip = await first.promise;
    const before = events;
    const hit = deferred<bigint>();
    const probe = await guest.probes.at(rip, ({ registers }) => hit.resolve(registers.rip));
    assert.equal(await hit.promise, rip);
    await vm.run('true');
    await probe.remove();
    // Every write there is an event, but for those that change nothing.
    assert.ok(events > before, `${events - before} events, ${probe.hits} hits`);
    assert.ok(probe.hits >= events - before - 1, `${events - before} events, ${probe.hits} hits`);
  });

  test('detached in the middle of a hit, the guest runs on', async () => {
    const hit = deferred<void>();
    await guest.probes.at(address, () => {
      hit.resolve();
      return new Promise<void>(() => {});
    });
    const calling = callOnBoth();
    await hit.promise;
    await guest.detach();
    await calling;
  });

  test('killed with SIGKILL, the tool leaves nothing and the guest runs on', async () => {
    await guest.detach();
    await machine.close();
    const script = join(import.meta.dirname, 'probe-victim.js');
    const victim = spawn(process.execPath, [script, vm.qmp, String(address)], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    const lines = createInterface({ input: victim.stdout! })[Symbol.asyncIterator]();
    assert.equal((await lines.next()).value, 'gdbstub');
    await vm.run('(while true; do call; done) >/dev/null 2>&1 & echo $! >/tmp/calling');
    for (let i = 0; i < 5; i++) assert.equal((await lines.next()).value, 'hit');
    const original = await piece();
    victim.kill('SIGKILL');
    await once(victim, 'exit');
    await vm.nextTicks(2, PATIENCE_MS);
    await stubGone(vm);
    await vm.run('kill $(cat /tmp/calling)');
    assert.deepEqual(await piece(), original);
    machine = await openQemu({ qmp: vm.qmp });
    guest = await introspect(machine, { onError: (error) => errors.push(error) });
  });

  test('a snapshot that was taken while a probe was set runs after the probe is gone', async () => {
    await addSnapshotDisk(vm);
    const original = await piece();
    const probe = await guest.probes.at(address, () => {});
    await callOnBoth();
    assert.equal(await vm.monitor.hmp('savevm probed'), '');
    await guest.detach();
    assert.equal(await vm.monitor.hmp('loadvm probed'), '');
    await vm.nextTicks(2, PATIENCE_MS);
    assert.deepEqual(await piece(), original);
    assert.equal(probe.hits, 2 * CALLS);
    await callOnBoth();
    assert.equal(probe.hits, 2 * CALLS);
  });
});

test('a machine that is detached has no probes any more', { skip: whyNoLinuxGuest() ?? false }, async () => {
  const vm = await LinuxGuest.boot();
  const [address] = Object.values(await symbolsOf(vm, ['__x64_sys_write']));
  const machine = await openQemu({ qmp: vm.qmp });
  try {
    await machine.attach(new TestHandler());
    let before = 0;
    const remove = await machine.probes!.set(address!, () => {
      before++;
      return undefined;
    });
    await until(() => before > 0, 'a hit');
    await machine.detach();
    const hits = before;
    await machine.attach(new TestHandler());
    const hit = deferred<void>();
    await machine.probes!.set(address!, () => {
      hit.resolve();
      return undefined;
    });
    await remove();
    await hit.promise;
    assert.equal(before, hits, 'the one of before is not called');
  } finally {
    await machine.close();
    await vm.kill();
  }
});

test('QEMU dies while a vCPU is held: removing says that it was not done', {
  skip: whyNoLinuxGuest() ?? false,
}, async () => {
  const vm = await LinuxGuest.boot();
  const [address] = Object.values(await symbolsOf(vm, ['__x64_sys_write']));
  const machine = await openQemu({ qmp: vm.qmp });
  const guest = await introspect(machine);
  const hit = deferred<void>();
  const probe = await guest.probes.at(address!, () => {
    hit.resolve();
    return new Promise<void>(() => {});
  });
  await hit.promise;
  await vm.kill();
  await guest.closed;
  await assert.rejects(probe.remove(), { code: 'E_CLOSED' });
  await machine.close();
});

test('a probe in code that is not mapped yet: QEMU is started with -S', {
  skip: whyNoLinuxGuest() ?? false,
}, async () => {
  const booted = await LinuxGuest.boot({ append: 'nokaslr' });
  const { start_kernel: address } = await symbolsOf(booted, ['start_kernel']);
  await booted.kill();
  const vm = await LinuxGuest.boot({ append: 'nokaslr', paused: true });
  const machine = await openQemu({ qmp: vm.qmp });
  const guest = await introspect(machine);
  try {
    const hit = deferred<bigint>();
    const probe = await guest.probes.at(address!, ({ registers }) => hit.resolve(registers.rip));
    assert.equal(probe.kind, 'gdbstub');
    await vm.monitor.execute('cont');
    assert.equal(await hit.promise, address);
    await probe.remove();
    await guest.detach();
    await vm.nextTicks(1, 3 * PATIENCE_MS);
    assert.equal(probe.hits, 1, 'a kernel starts once');
  } finally {
    await machine.close();
    await vm.kill();
  }
});

async function stubGone(vm: LinuxGuest): Promise<void> {
  for (const deadline = Date.now() + PATIENCE_MS; ; ) {
    const chardevs = (await vm.monitor.execute('query-chardev')) as { label: string }[];
    if (chardevs.every(({ label }) => label !== 'gdb')) return;
    assert.ok(Date.now() < deadline, 'the gdbstub is removed');
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

import assert from 'node:assert/strict';
import { after, afterEach, before, beforeEach, describe, test } from 'node:test';
import { openQemu, type QemuMachine } from '../../src/drivers/qemu/index.ts';
import { introspect } from '../../src/introspect.ts';
import type { Guest } from '../../src/tool/index.ts';
import { syscallProgram } from '../kit/elf.ts';
import { nothingLeft, runState, unharmed } from '../kit/guarded.ts';
import { KernelText, symbolsOf } from '../kit/kernel-text.ts';
import { LinuxGuest, whyNoLinuxGuest } from '../kit/linux-guest.ts';

/* Others – somebody at the VM's other monitor – stop the VM and let it run while it is hooked. */

/** A system call that no program makes by itself, and the kernel's function for it. */
const SYSCALL = 146;
const FUNCTION = '__x64_sys_sched_get_priority_max';
const CALLS = 30;
const ROUNDS = 60;
/** 25 ms apart: a guard takes some 150 ms to start. */
const MOMENTS = 12;
const PATIENCE_MS = 60_000;

const pause = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms));

describe('stop and cont by others', { skip: whyNoLinuxGuest() ?? false }, () => {
  let vm: LinuxGuest;
  let text: KernelText;
  let address: bigint;
  let machine: QemuMachine;
  let guest: Guest;
  let closed: Error | undefined;

  before(async () => {
    vm = await LinuxGuest.boot({
      smp: 2,
      files: [{ path: 'bin/call', content: syscallProgram(SYSCALL, CALLS) }],
    });
    address = (await symbolsOf(vm, [FUNCTION]))[FUNCTION]!;
    text = await KernelText.of(vm);
    await vm.run('(while true; do call; done) >/dev/null 2>&1 & true');
  });
  after(() => vm?.kill());
  beforeEach(hook);
  afterEach(async () => {
    await guest.detach();
    await machine.close();
    await nothingLeft(vm, undefined);
    await unharmed(vm, text);
    const nodes = JSON.stringify(await vm.monitor.execute('query-named-block-nodes'));
    assert.doesNotMatch(nodes, /"node-name":"kvmi/, 'no block node is left');
  });

  async function hook(): Promise<void> {
    machine = await openQemu({ qmp: vm.qmp });
    guest = await introspect(machine);
    closed = undefined;
    void guest.closed.then((error) => {
      closed = error;
    });
  }

  /** Whether the VM comes to a stop and stays stopped: what was under way when it was told to is over then. */
  async function staysStopped(): Promise<boolean> {
    const deadline = Date.now() + PATIENCE_MS;
    for (let stopped = 0; stopped < 20; await pause(3)) {
      stopped = (await runState(vm)) === 'paused' ? stopped + 1 : 0;
      if (Date.now() > deadline) return false;
    }
    return true;
  }

  async function hitsAgain(probe: { readonly hits: number }): Promise<boolean> {
    const { hits } = probe;
    for (const deadline = Date.now() + PATIENCE_MS; probe.hits < hits + 2; await pause(1))
      if (Date.now() > deadline || closed) return false;
    return true;
  }

  for (const held of [0, 1, 30]) {
    test(`${ROUNDS} rounds, vCPUs held for ${held} ms: none is lost`, async () => {
      const probe = await guest.probes.at(address, () => pause(held));
      for (let round = 0; round < ROUNDS; round++) {
        await pause(5 + ((round * 7) % 53));
        await vm.monitor.execute('stop');
        assert.ok(await staysStopped(), `round ${round}: the stop is lost`);
        await vm.monitor.execute('cont');
        assert.ok(await hitsAgain(probe), `round ${round}: the cont is lost`);
      }
      assert.equal(closed, undefined);
      await probe.remove();
    });
  }

  test('cont while a vCPU is held: it stays held, and nothing is mixed up', async () => {
    const seen = new Set<bigint>();
    let held = 0;
    const probe = await guest.probes.at(address, async ({ vcpu }) => {
      const { rip } = await vcpu.registers();
      seen.add(rip);
      held++;
      for (let i = 0; i < 5; i++) await vm.monitor.execute('cont');
      seen.add((await vcpu.registers()).rip);
    });
    while (held < 20 && !closed) await pause(5);
    assert.equal(closed, undefined);
    assert.deepEqual([...seen], [address]);
    assert.ok(await hitsAgain(probe));
    await probe.remove();
  });

  for (const what of ['stop', 'cont'] as const) {
    test(`${what} at ${MOMENTS} moments while kvmi attaches: it is in force`, async () => {
      for (let i = 0; i < MOMENTS; i++) {
        await guest.detach();
        // Another one has another guard, which has to start.
        await machine.close();
        await hook();
        if (what === 'cont') await vm.monitor.execute('stop');
        const armed = guest.probes.at(address, () => {});
        await pause(i * 25);
        await vm.monitor.execute(what);
        const probe = await armed;
        if (what === 'stop') {
          assert.ok(await staysStopped(), `${i * 25} ms: it runs on`);
          await vm.monitor.execute('cont');
        }
        assert.ok(await hitsAgain(probe), `${i * 25} ms: it stands still`);
      }
    });
  }

  test('a stop while a vCPU is held is in force after unhook', async () => {
    let hit = () => {};
    const first = new Promise<void>((resolve) => {
      hit = resolve;
    });
    let go = () => {};
    const held = new Promise<void>((resolve) => {
      go = resolve;
    });
    await guest.probes.at(address, async () => {
      hit();
      await held;
    });
    await first;
    await vm.monitor.execute('stop');
    go();
    await guest.detach();
    assert.equal(await runState(vm), 'paused');
    assert.ok(await staysStopped());
    await vm.monitor.execute('cont');
  });
});

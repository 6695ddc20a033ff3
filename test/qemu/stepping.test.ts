import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { after, before, beforeEach, describe, test } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import { getRegister, regsOf, STATE_SIZE } from '../../src/abi/index.ts';
import { openQemu, type QemuMachine } from '../../src/drivers/qemu/index.ts';
import { CONTINUE, type Vcpu } from '../../src/machine/index.ts';
import { journalOf, killedWhilePaused, runState, unharmed, until } from '../kit/guarded.ts';
import { TestHandler } from '../kit/handler.ts';
import { KernelText } from '../kit/kernel-text.ts';
import { LinuxGuest, whyNoLinuxGuest } from '../kit/linux-guest.ts';

const ROUNDS = 40;
const STEPS = 1500;

/** Steps every vCPU from instruction to instruction, for a time that differs from round to round. */
async function stepAll(machine: QemuMachine, round: number): Promise<void> {
  await TestHandler.attach(machine);
  for (const vcpu of machine.vcpus) await machine.arm({ kind: 'singlestep', vcpu });
  await pause(5 + ((round * 7) % 60));
}

/*
 * vCPUs that wait for an interrupt do not finish the steps that QEMU was told to do. Those that QEMU has not forgotten
 * would stop the VM later, when nobody is there.
 */
describe('steps that are not finished, -smp 2', { skip: whyNoLinuxGuest() ?? false }, () => {
  let vm: LinuxGuest;
  let text: KernelText;

  before(async () => {
    vm = await LinuxGuest.boot({ smp: 2 });
    text = await KernelText.of(vm);
  });
  after(() => vm?.kill());
  beforeEach(async () => {
    await vm.monitor.execute('cont');
    await vm.nextTicks(1);
  });

  test('detach from an idle guest: it runs on', async () => {
    const machine = await openQemu({ qmp: vm.qmp });
    try {
      const handler = await TestHandler.attach(machine);
      const stepped = new Set<number>();
      handler.onStop = (vcpu) => {
        stepped.add(vcpu.index);
        return CONTINUE;
      };
      for (const vcpu of machine.vcpus) await machine.arm({ kind: 'singlestep', vcpu });
      // The others wait for an interrupt, and time hardly passes for them meanwhile.
      await until(() => stepped.size > 0, 'a vCPU is stepped');
      await machine.detach();
      await unharmed(vm, text);
      assert.equal(await runState(vm), 'running');
    } finally {
      await machine.close();
    }
  });

  test('the host side is killed in an idle VM that somebody else has paused: it runs on when it is let', async () => {
    const script = join(import.meta.dirname, 'stepping-victim.js');
    const host = spawn(process.execPath, [script, vm.qmp], { stdio: ['ignore', 'pipe', 'inherit'] });
    await once(host.stdout, 'data');
    await killedWhilePaused(vm, text, journalOf(vm.pid), () => host.kill('SIGKILL'));
  });

  test(`${ROUNDS} times every vCPU of a busy guest is stepped, and let go: none of our stops is taken for others’`, async () => {
    await vm.run('(while true; do id -u >/dev/null; done) & (while true; do id -u >/dev/null; done) &');
    const frozen: number[] = [];
    for (let round = 0; round < ROUNDS; round++) {
      const machine = await openQemu({ qmp: vm.qmp });
      try {
        await stepAll(machine, round);
      } finally {
        await machine.close();
      }
      if ((await runState(vm)) === 'running') continue;
      frozen.push(round);
      await vm.monitor.execute('cont');
    }
    assert.deepEqual(frozen, []);
  });

  test(`${STEPS} steps of a busy guest: each has been made`, async () => {
    const machine = await openQemu({ qmp: vm.qmp });
    try {
      const handler = await TestHandler.attach(machine);
      const before = new Map<Vcpu, string>();
      const missing: string[] = [];
      let steps = 0;
      handler.onStop = async (vcpu) => {
        const block = new Uint8Array(STATE_SIZE);
        await vcpu.readState(block);
        const registers = Buffer.from(regsOf(block)).toString('hex');
        // The guest has no instruction that leads to itself and changes nothing.
        if (before.get(vcpu) === registers) missing.push(getRegister(block, 'rip').toString(16));
        before.set(vcpu, registers);
        steps++;
        return CONTINUE;
      };
      for (const vcpu of machine.vcpus) await machine.arm({ kind: 'singlestep', vcpu });
      for (let next = 0; next <= STEPS; next += 100) await until(() => steps > next, `step ${next}`);
      await machine.detach();
      assert.deepEqual(missing, []);
    } finally {
      await machine.close();
    }
  });

  test(`${ROUNDS} times others stop a busy guest of which every vCPU is stepped: none is lost`, async () => {
    for (let round = 0; round < ROUNDS; round++) {
      const machine = await openQemu({ qmp: vm.qmp });
      try {
        await stepAll(machine, round);
        await vm.monitor.execute('stop');
        await until(() => journalOf(vm.pid)?.running === false, `round ${round}: the stop is lost`);
      } finally {
        await machine.close();
      }
      assert.equal(await runState(vm), 'paused', `round ${round}`);
      await vm.monitor.execute('cont');
    }
  });
});

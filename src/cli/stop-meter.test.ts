import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Machine, MachineHandler, Stop, Vcpu } from '../machine/index.ts';
import { StopMeter } from './stop-meter.ts';

/** A machine with all that one may have. */
class Whole {
  readonly vmcoreinfo = 'OSRELEASE=6.1';
  readonly views = { limit: 3 };
  readonly frames = {};
  readonly probes = { count: 4 };
  handler: MachineHandler | undefined;
  #killed = false;

  get killed(): boolean {
    return this.#killed;
  }

  attach(handler: MachineHandler): void {
    this.handler = handler;
  }

  kill(): void {
    this.#killed = true;
  }
}

test('what a machine may have is there through the meter', () => {
  const machine = new Whole();
  const meter = new StopMeter(machine as unknown as Machine);
  assert.equal(meter.vmcoreinfo, machine.vmcoreinfo);
  assert.equal(meter.views, machine.views);
  assert.equal(meter.frames, machine.frames);
  assert.equal(meter.probes?.count, 4);
  meter.kill!();
  assert.equal(machine.killed, true);
});

test('what a machine does not have is not there', () => {
  const meter = new StopMeter({} as Machine);
  assert.equal(meter.kill, undefined);
  assert.equal(meter.views, undefined);
  assert.equal(meter.probes, undefined);
});

test('stops are measured by their kind', async () => {
  const machine = new Whole();
  const meter = new StopMeter(machine as unknown as Machine);
  let answer = (): void => {};
  const handler = {
    stop: () => new Promise((resolve) => (answer = () => resolve({ action: 'continue' }))),
  };
  await meter.attach(handler as unknown as MachineHandler);
  const stopped = machine.handler!.stop({} as Vcpu, { kind: 'cpuid' } as Stop);
  answer();
  assert.deepEqual(await stopped, { action: 'continue' });
  assert.ok(meter.heldBy('cpuid') > 0);
  assert.equal(meter.heldBy('cr', 'msr'), 0);
});

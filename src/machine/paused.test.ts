import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import type { Machine, MachineHandler } from './machine.ts';
import { whilePaused } from './paused.ts';
import type { Vcpu } from './vcpu.ts';

/** Two vCPUs that leave the guest when `leave` is called for them. */
function pausable(pause: true | string = true) {
  let handler: MachineHandler | undefined;
  const inGuest = new Set([0, 1]);
  const vcpus = [0, 1].map((index) => ({
    index,
    started: true,
    request() {},
    readState: (into: Uint8Array) => into.fill(index + 1),
  })) as unknown as Vcpu[];
  const machine = {
    name: 'toy',
    capabilities: { pause },
    vcpus,
    attach(given: MachineHandler) {
      handler = given;
    },
    detach() {
      handler = undefined;
    },
  } as unknown as Machine;
  const leave = async (index: number): Promise<void> => {
    inGuest.delete(index);
    await handler!.request(vcpus[index]!);
    inGuest.add(index);
  };
  return { machine, inGuest, leave, close: () => handler!.closed(), attached: () => handler !== undefined };
}

const never = new AbortController().signal;

describe('whilePaused', () => {
  test('has every vCPU outside the guest, with its state, until the work is done', async () => {
    const { machine, inGuest, leave, attached } = pausable();
    const done = whilePaused(machine, never, async (states) => {
      await new Promise(setImmediate);
      return [inGuest.size, ...states.map((state) => state[535])];
    });
    const left = [leave(1), leave(0)];
    assert.deepEqual(await done, [0, 1, 2]);
    await Promise.all(left);
    assert.equal(inGuest.size, 2);
    assert.equal(attached(), false);
  });

  test('lets them run on when the work says so', async () => {
    const { machine, inGuest, leave } = pausable();
    let left: Promise<void>[] = [];
    const done = whilePaused(machine, never, async (_states, release) => {
      release();
      await Promise.all(left);
      return inGuest.size;
    });
    left = [leave(0), leave(1)];
    assert.equal(await done, 2);
  });

  for (const [what, end, expected] of [
    ['the work fails', undefined, /work/],
    ['the machine ends while they are held', 'close', { code: 'E_GONE' }],
  ] as const) {
    test(`lets them go when ${what}`, async () => {
      const { machine, leave, close, inGuest, attached } = pausable();
      const done = whilePaused(machine, never, () => {
        if (end === undefined) return Promise.reject(new Error('work'));
        setImmediate(close);
        return new Promise(() => {});
      });
      const left = [leave(0), leave(1)];
      await assert.rejects(done, expected);
      await Promise.all(left);
      assert.equal(inGuest.size, 2);
      assert.equal(attached(), false);
    });
  }

  test('stops waiting for a vCPU when it is told to, and lets the others go', async () => {
    const { machine, inGuest, leave, attached } = pausable();
    const controller = new AbortController();
    const done = whilePaused(machine, controller.signal, async () => assert.fail('vCPU 1 runs'));
    const left = leave(0);
    controller.abort(new Error('enough'));
    await assert.rejects(done, /enough/);
    await left;
    assert.equal(inGuest.size, 2);
    assert.equal(attached(), false);
  });

  test('says why a machine cannot be paused', async () => {
    const { machine, attached } = pausable('it does not stop');
    const done = whilePaused(machine, never, async () => undefined);
    await assert.rejects(done, { code: 'E_UNSUPPORTED', message: /it does not stop/ });
    assert.equal(attached(), false);
  });
});

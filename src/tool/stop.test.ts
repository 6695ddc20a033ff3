import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { codeOf, type HookedOptions, hooked } from '../../test/kit/hooked.ts';
import type { ScriptedHost } from '../../test/kit/scripted-host.ts';
import { deferred } from '../awaitable.ts';

/** vCPUs that run until they are asked for PAUSE events, which they send one after another. */
class Vcpus {
  readonly requests: number[];
  readonly stopped: boolean[];
  readonly host: ScriptedHost;
  /** Not started yet: takes requests, answers no command. */
  readonly asleep = new Set<number>();

  constructor(host: ScriptedHost, count: number) {
    this.host = host;
    this.requests = new Array(count).fill(0);
    this.stopped = new Array(count).fill(false);
    host.on('VM_PAUSE_VCPU', ({ body, vcpu }) => {
      const index = body.vcpu ?? vcpu;
      this.requests[index]!++;
      setImmediate(() => this.serve(index));
      return {};
    });
    host.on('VCPU_GET_INFO', ({ vcpu }) => (this.asleep.has(vcpu) ? 11 : { tsc_speed: 0n }));
  }

  async serve(index: number): Promise<void> {
    while (this.requests[index]! > 0 && !this.stopped[index] && !this.asleep.has(index)) {
      this.requests[index]!--;
      this.stopped[index] = true;
      await this.host.event('PAUSE', index, {});
      this.stopped[index] = false;
    }
  }

  /** Another event, as long as the vCPU runs. */
  async event(index: number): Promise<void> {
    assert.equal(this.stopped[index], false);
    this.stopped[index] = true;
    await this.host.event('HYPERCALL', index, {});
    this.stopped[index] = false;
    void this.serve(index);
  }
}

async function withVcpus(count: number, options: HookedOptions = {}) {
  let vcpus!: Vcpus;
  const all = await hooked({
    ...options,
    vcpus: count,
    prepare: (host) => {
      vcpus = new Vcpus(host, count);
    },
  });
  return { ...all, vcpus };
}

for (const dialect of ['v7', 'v9', 'v12'] as const) {
  test(`${dialect}: a pause stops every vCPU until it is resumed`, async () => {
    const { guest, vcpus } = await withVcpus(4, { dialect });
    const paused = await guest.pause();
    assert.deepEqual(vcpus.stopped, [true, true, true, true]);
    for (let i = 0; i < 10; i++) await turn();
    assert.deepEqual(vcpus.stopped, [true, true, true, true]);
    paused.resume();
    paused.resume();
    await turn();
    assert.deepEqual(vcpus.stopped, [false, false, false, false]);
    assert.deepEqual(vcpus.requests, [0, 0, 0, 0]);
  });
}

test('pauses overlap: the guest runs again after the last one', async () => {
  const { guest, vcpus, host } = await withVcpus(2);
  const [first, second] = await Promise.all([guest.pause(), guest.pause()]);
  const third = await guest.vcpus[1]!.pause();
  assert.equal(host.got('VM_PAUSE_VCPU').length, 2, 'a vCPU is stopped once');
  second.resume();
  first.resume();
  await turn();
  assert.deepEqual(vcpus.stopped, [false, true]);
  third.resume();
  await turn();
  assert.deepEqual(vcpus.stopped, [false, false]);
});

test('one vCPU can be paused alone', async () => {
  const { guest, vcpus } = await withVcpus(3);
  const paused = await guest.vcpus[1]!.pause();
  assert.deepEqual(vcpus.stopped, [false, true, false]);
  paused.resume();
});

test('a pause inside a handler keeps the vCPU in its event', async () => {
  const { guest, vcpus } = await withVcpus(2);
  let resume = () => {};
  guest.on('HYPERCALL', async () => {
    ({ resume } = await guest.pause());
  });
  const event = vcpus.event(0);
  for (let i = 0; i < 10; i++) await turn();
  assert.deepEqual(vcpus.stopped, [true, true]);
  resume();
  await event;
  await turn();
  assert.deepEqual(vcpus.stopped, [false, false]);
});

test('a vCPU whose event came before its pause is stopped by that event', async () => {
  const { guest, vcpus } = await withVcpus(1);
  const gate = deferred<void>();
  guest.on('HYPERCALL', () => gate.promise);
  const pausing = guest.pause();
  const event = vcpus.event(0);
  const paused = await pausing;
  gate.resolve();
  await turn();
  assert.deepEqual(vcpus.stopped, [true], 'the answer of the handler waits');
  paused.resume();
  await event;
  for (let i = 0; i < 5; i++) await turn();
  assert.deepEqual([vcpus.stopped, vcpus.requests], [[false], [0]], 'the late PAUSE is answered');
});

test('a vCPU that was not started counts as stopped, and stays so when it starts', async () => {
  const { guest, vcpus } = await withVcpus(2);
  vcpus.asleep.add(1);
  const paused = await guest.pause();
  vcpus.asleep.delete(1);
  void vcpus.serve(1);
  await turn();
  assert.deepEqual(vcpus.stopped, [true, true]);
  paused.resume();
  await turn();
  assert.deepEqual(vcpus.stopped, [false, false]);
});

test('a vCPU that does not stop times out, and the others are let go', async () => {
  const { guest, host, vcpus } = await withVcpus(2, { requestTimeout: 3000 });
  const serve = vcpus.serve.bind(vcpus);
  vcpus.serve = async (index) => (index === 1 ? undefined : serve(index));
  await assert.rejects(guest.pause(), { code: 'E_TIMEOUT', message: /vCPU 1 did not stop/ });
  await turn();
  assert.equal(vcpus.stopped[0], false);
  vcpus.serve = serve;
  void serve(1);
  for (let i = 0; i < 5; i++) await turn();
  assert.equal(vcpus.stopped[1], false, 'the late PAUSE is answered');
  assert.equal(host.unanswered, 0);
  (await guest.pause()).resume();
});

test('a refused pause and a hang-up during one are errors', async () => {
  const { guest, host } = await withVcpus(1);
  host.on('VM_PAUSE_VCPU', () => 16);
  assert.equal(await codeOf(guest.pause()), 'E_REPLY');
  host.on('VM_PAUSE_VCPU', () => ({}));
  const pausing = codeOf(guest.pause());
  await turn();
  host.channel.shutdown();
  assert.equal(await pausing, 'E_CLOSED');
});

test('PAUSE events that the user asked for by hand go to the handler', async () => {
  const { guest, vcpus } = await withVcpus(1);
  let seen = 0;
  guest.on('PAUSE', () => {
    seen++;
  });
  await guest.command('VM_PAUSE_VCPU', { vcpu: 0, wait: 1 });
  await turn();
  assert.equal(seen, 1);
  (await guest.pause()).resume();
  await turn();
  assert.equal(seen, 1);
  assert.deepEqual(vcpus.stopped, [false]);
});

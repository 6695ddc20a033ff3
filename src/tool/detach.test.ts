import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { hooked } from '../../test/kit/hooked.ts';
import { deferred } from '../awaitable.ts';
import type { KvmiError } from '../error.ts';
import type { EventName } from '../wire/index.ts';

const dialects = ['v7', 'v9', 'v12'] as const;

for (const dialect of dialects) {
  test(`${dialect}: detach takes back everything that was turned on, answers what is open, and hangs up`, async () => {
    const { guest, host, errors } = await hooked({ dialect });
    const id = (name: EventName) => host.dialect.event(name)!.id;
    const [first, second] = guest.vcpus as [(typeof guest.vcpus)[0], (typeof guest.vcpus)[0]];
    await guest.enable('UNHOOK');
    await guest.enable('CR');
    await first.controlEvents('MSR', true);
    await first.controlEvents('PF', true);
    await first.controlEvents('PF', false);
    await second.controlCr(3, true);
    await second.controlMsr(0xc0000082, true);
    await first.singlestep(true);
    await guest.setPageAccess([
      { gpa: 0x1000, access: 5 },
      { gpa: 0x2fff, access: 1 },
      { gpa: 0x3000, access: 0 },
    ]);
    await guest.setPageAccess([{ gpa: 0x3000, access: 7 }]);
    const gate = deferred<void>();
    guest.on('HYPERCALL', () => gate.promise);
    const answer = host.event('HYPERCALL', 1, {});
    host.received.length = 0;

    await guest.detach();
    await guest.detach();
    assert.equal((await answer).action, 'continue');
    const off = host
      .got('VCPU_CONTROL_EVENTS')
      .map(({ vcpu, body }) => [vcpu, body.event_id, body.enable])
      .sort();
    const expected = [
      [0, id('CR'), 0],
      [0, id('MSR'), 0],
      [1, id('CR'), 0],
      ...(dialect === 'v7' ? [[0, id('SINGLESTEP'), 0]] : []),
    ].sort();
    assert.deepEqual(off, expected);
    assert.deepEqual(
      host.got('VM_CONTROL_EVENTS').map(({ body }) => [body.event_id, body.enable]),
      [[id('UNHOOK'), 0]],
    );
    assert.deepEqual(
      host.got('VCPU_CONTROL_CR').map(({ vcpu, body }) => [vcpu, body.cr, body.enable]),
      [[1, 3, 0]],
    );
    assert.deepEqual(
      host.got('VCPU_CONTROL_MSR').map(({ vcpu, body }) => [vcpu, body.enable]),
      [[1, 0]],
    );
    assert.deepEqual(
      host.got('VCPU_CONTROL_SINGLESTEP').map(({ vcpu, body }) => [vcpu, body.enable]),
      [[0, 0]],
    );
    const lifted = host.got('VM_SET_PAGE_ACCESS').flatMap(({ body }) => body.entries);
    assert.deepEqual(
      lifted.map(({ gpa, access }) => [gpa, access]),
      [
        [0x1000, 7],
        [0x2000, 7],
      ],
    );
    assert.equal(await guest.closed, undefined);
    await turn();
    assert.ok(host.closed);
    assert.deepEqual(errors, []);
    gate.resolve();
  });
}

test('what cannot be taken back is reported, and the rest is', async () => {
  const { guest, host, errors } = await hooked();
  await guest.enable('CR');
  await guest.vcpus[0]!.controlCr(4, true);
  await guest.setPageAccess([{ gpa: 0, access: 1 }]);
  host.on('VCPU_CONTROL_EVENTS', ({ vcpu }) => (vcpu === 0 ? 16 : {})).on('VM_SET_PAGE_ACCESS', () => 22);
  await guest.detach();
  assert.deepEqual(
    errors.map((error) => (error as KvmiError).code),
    ['E_DETACH', 'E_DETACH'],
  );
  assert.match(errors.map(({ message }) => message).join(), /vCPU 0: event CR stays on/);
  assert.match(errors.map(({ message }) => message).join(), /page access stays/);
  assert.equal(host.got('VCPU_CONTROL_CR').at(-1)!.body.enable, 0);
});

test('detach while vCPUs are held lets them go', async () => {
  const { guest, host } = await hooked({ vcpus: 1 });
  const stopped = deferred<void>();
  let answer: Promise<unknown> | undefined;
  host.on('VM_PAUSE_VCPU', () => {
    setImmediate(() => {
      answer = host.event('PAUSE', 0, {});
      stopped.resolve();
    });
    return {};
  });
  const paused = await guest.pause();
  await stopped.promise;
  await guest.detach();
  assert.deepEqual(await answer, { action: 'continue', data: {} });
  paused.resume();
  assert.deepEqual(host.strayReplies, []);
});

test('detach of a guest that is gone does nothing', async () => {
  const { guest, host, errors } = await hooked();
  await guest.enable('CR');
  host.channel.shutdown();
  await guest.closed;
  await guest.detach();
  assert.deepEqual(errors, []);
});

test('detach when the host does not answer any more ends all the same', async () => {
  const { guest, host, errors } = await hooked({ requestTimeout: 30 });
  await guest.enable('CR');
  host.on('VCPU_CONTROL_EVENTS', () => undefined);
  await guest.detach();
  assert.equal(errors.length, 2);
  await turn();
  assert.ok(host.closed);
});

for (const dialect of dialects) {
  test(`${dialect}: an UNHOOK event detaches, after its handler`, async () => {
    const { guest, host } = await hooked({ dialect });
    await guest.enable('UNHOOK');
    const gate = deferred<void>();
    let seen = 0;
    guest.on('UNHOOK', async () => {
      seen++;
      await gate.promise;
    });
    host.channel.write(host.message('UNHOOK', 0, {}).bytes);
    await turn();
    assert.deepEqual([seen, host.closed], [1, false]);
    gate.resolve();
    await guest.closed;
    assert.equal(host.got('VM_CONTROL_EVENTS').at(-1)!.body.enable, 0);
  });
}

test('an UNHOOK event without a handler detaches, too', async () => {
  const { guest, host } = await hooked();
  host.channel.write(host.message('UNHOOK', 0, {}).bytes);
  assert.equal(await guest.closed, undefined);
});

test('more page access entries than a message holds go out in several', async () => {
  const { guest, host } = await hooked();
  const entries = Array.from({ length: 1200 }, (_, i) => ({ gpa: i * 4096, access: 5 }));
  await guest.setPageAccess(entries);
  assert.deepEqual(
    host.got('VM_SET_PAGE_ACCESS').map(({ body }) => body.count),
    [511, 511, 178],
  );
  host.on('VM_SET_PAGE_ACCESS', () => 22);
  await assert.rejects(guest.setPageAccess(entries), { code: 'E_REPLY' });
});

test('an event that two want is turned off when neither does', async () => {
  const { guest, host } = await hooked();
  const [vcpu] = guest.vcpus as [(typeof guest.vcpus)[0]];
  await Promise.all([vcpu.switchEvents('BREAKPOINT', true, 'a'), vcpu.controlEvents('BREAKPOINT', true)]);
  await vcpu.controlEvents('BREAKPOINT', true);
  await vcpu.switchEvents('BREAKPOINT', false, 'a');
  assert.equal(host.got('VCPU_CONTROL_EVENTS').length, 1);
  await vcpu.controlEvents('BREAKPOINT', false);
  assert.deepEqual(
    host.got('VCPU_CONTROL_EVENTS').map(({ body }) => body.enable),
    [1, 0],
  );
});

test('an event that could not be turned on can be tried again; before v10 it is turned off in between', async () => {
  for (const dialect of dialects) {
    const { guest, host } = await hooked({ dialect, vcpus: 1 });
    let refuse = true;
    host.on('VCPU_CONTROL_EVENTS', ({ body }) => (refuse && body.enable === 1 ? 95 : {}));
    await assert.rejects(guest.enable('DESCRIPTOR'), { code: 'E_REPLY' });
    refuse = false;
    await guest.enable('DESCRIPTOR');
    const sent = host.got('VCPU_CONTROL_EVENTS').map(({ body }) => body.enable);
    assert.deepEqual(sent, dialect === 'v12' ? [1, 1] : [1, 0, 1], dialect);
  }
});

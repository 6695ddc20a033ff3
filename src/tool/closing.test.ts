import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { BASE, CODE, ToyVm } from '../../test/kit/toy-vm.ts';
import { loopback } from '../transport/index.ts';
import { encodeHello, HEADER_SIZE, putHeader } from '../wire/index.ts';
import { connectGuest } from './connect.ts';

const START = 0x1000;
const TARGET = BASE + BigInt(START);

/** What a tool does in its life. Every step may fail; none may hang. */
async function session(vm: ToyVm): Promise<void> {
  const { guest } = vm;
  guest.on('CR', (event) => ({ newValue: event.data.old_value }));
  await guest.enable('CR');
  await guest.vcpus[0]!.controlCr(3, true);
  const paused = await guest.pause();
  await guest.memory.readBytes(0, 3 * 4096);
  await guest.vcpus[1]!.memory.readBytes(TARGET, 8);
  paused.resume();
  const first = await guest.breakpoints.set(TARGET, async ({ vcpu }) => {
    await vcpu.info();
  });
  await guest.breakpoints.set(TARGET + 5n, () => {});
  await vm.until('hits', () => first.hits > 5 || vm.host.closed);
  await first.remove();
  let steps = 0;
  await guest.singlestep(guest.vcpus[0]!, () => ++steps < 20);
  await guest.setPageAccess([{ gpa: 0x2000, access: 5 }]);
  await guest.detach();
}

test('the host side may hang up at any command: everything ends, and nothing is left waiting', async () => {
  let completed = false;
  for (let last = 0; !completed; last++) {
    const vm = await ToyVm.start({ vcpus: 2, requestTimeout: 60_000 });
    vm.load(START, CODE.nop5, CODE.count, CODE.jump(-9));
    vm.run(START);
    let commands = 0;
    const push = vm.host.received.push.bind(vm.host.received);
    vm.host.received.push = (...items) => {
      if (commands++ === last) vm.host.channel.shutdown();
      return push(...items);
    };
    const started = Date.now();
    const outcome = await session(vm).then(
      () => 'done',
      (error) => error.code,
    );
    completed = commands <= last;
    assert.ok(
      completed ? outcome === 'done' : ['E_CLOSED', 'done'].includes(outcome),
      `${outcome} after ${last}`,
    );
    await vm.guest.detach();
    await vm.guest.closed;
    await turn();
    assert.ok(Date.now() - started < 10_000, `it hung after ${last} commands`);
    assert.deepEqual(vm.errors, []);
    assert.ok(last < 500, 'the session never completes');
  }
});

test('a hang-up after any byte of the handshake ends the attempt', async () => {
  const bytes = encodeHello({ uuid: new Uint8Array(16), name: 'x', startTime: 0 });
  for (let size = 0; size <= bytes.length; size += 8) {
    const [channel, other] = loopback();
    const attempt = connectGuest(channel);
    other.open({ data() {}, close() {} });
    other.write(bytes.slice(0, size));
    other.shutdown();
    await assert.rejects(attempt, { code: 'E_CLOSED' });
  }
});

test('a hang-up after any byte of a reply ends the attempt', async () => {
  const reply = new Uint8Array(HEADER_SIZE + 24);
  putHeader(reply, 0, 2, 24, 1);
  for (const dialect of ['v12', 'auto'] as const) {
    for (let size = 0; size < reply.length; size++) {
      const [channel, other] = loopback();
      const hello = { uuid: new Uint8Array(16), name: 'x', startTime: 0 };
      const attempt = connectGuest(channel, { hello, dialect });
      other.open({ data() {}, close() {} });
      other.write(reply.slice(0, size));
      other.shutdown();
      await assert.rejects(attempt, { code: 'E_CLOSED' }, `${dialect}, ${size} bytes`);
    }
  }
});

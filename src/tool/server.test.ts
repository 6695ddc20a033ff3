import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { codeOf } from '../../test/kit/hooked.ts';
import { ScriptedHost } from '../../test/kit/scripted-host.ts';
import { deferred } from '../awaitable.ts';
import type { KvmiError } from '../error.ts';
import { type Channel, connect, loopback } from '../transport/index.ts';
import {
  cookieHash,
  type DialectName,
  encodeHello,
  type HandshakeHello,
  HandshakeReader,
} from '../wire/index.ts';
import { connectGuest, type Guest, type ListenOptions, listen, type ToolServer } from './index.ts';

const directory = mkdtempSync(join(tmpdir(), 'kvmi-tool-'));
after(() => rmSync(directory, { recursive: true }));

const uuid = Uint8Array.from({ length: 16 }, (_, i) => i);
let sockets = 0;

async function server(options: ListenOptions = {}): Promise<{ server: ToolServer; errors: KvmiError[] }> {
  const errors: KvmiError[] = [];
  const address = `unix:${directory}/${sockets++}.sock`;
  const onError = (error: Error) => errors.push(error as KvmiError);
  return { server: await listen(address, { onError, ...options }), errors };
}

/** A device manager that introduces itself; the result is the cookie hash that it got. */
async function introduce(channel: Channel, hello: HandshakeHello, host: ScriptedHost): Promise<Uint8Array> {
  const reader = HandshakeReader.answer();
  const answered = deferred<Uint8Array>();
  channel.open({
    data(bytes) {
      const taken = reader.push(bytes);
      if (!reader.complete) return;
      host.open();
      if (taken < bytes.length) host.feed(bytes.subarray(taken));
      answered.resolve(reader.readCookieHash());
    },
    close: () => answered.reject(new Error('the tool hung up')),
  });
  channel.write(encodeHello(hello));
  return answered.promise;
}

async function machine(address: string, name: string, dialect: DialectName = 'v12', vcpus = 2) {
  const channel = await connect(address);
  const host = new ScriptedHost(channel, { dialect, vcpus });
  const hash = await introduce(channel, { uuid, name, startTime: 12345 }, host);
  return { host, hash };
}

async function nextGuest(from: ToolServer): Promise<Guest> {
  for await (const guest of from) return guest;
  throw new Error('the server is closed');
}

test('a guest is what its device manager says it is', async () => {
  const { server: tool } = await server();
  const [guest, { hash }] = await Promise.all([nextGuest(tool), machine(tool.address, 'mail server')]);
  assert.equal(guest.name, 'mail server');
  assert.deepEqual(guest.uuid, uuid);
  assert.equal(guest.startTime, 12345);
  assert.equal(guest.memoryMap, undefined);
  assert.equal(guest.dialect, 'v12');
  assert.equal(guest.features.max_msg_size, 8184);
  assert.equal(guest.vcpus.length, 2);
  assert.deepEqual(hash, new Uint8Array(20));
  await guest.detach();
  await tool.close();
});

test('the memory map of the second variant is taken over', async () => {
  const { server: tool } = await server();
  const channel = await connect(tool.address);
  const host = new ScriptedHost(channel);
  const memoryMap = [{ address: 0, length: 1 << 20, type: 1 }];
  const [guest] = await Promise.all([
    nextGuest(tool),
    introduce(channel, { uuid, name: '', startTime: 0, memoryMap }, host),
  ]);
  assert.deepEqual(guest.memoryMap, memoryMap);
  assert.deepEqual(guest.memory.regions, [{ gpa: 0, size: 1 << 20, readonly: false }]);
  await guest.detach();
  await tool.close();
});

test('the hash of the cookie goes to the device manager, also over TCP', async () => {
  const cookie = Buffer.from('secret');
  const tool = await listen('tcp:127.0.0.1:0', { cookie });
  const [guest, { hash }] = await Promise.all([nextGuest(tool), machine(tool.address, 'x')]);
  assert.deepEqual(Buffer.from(hash), Buffer.from(cookieHash(cookie)));
  await guest.detach();
  await tool.close();
});

test('TCP without a cookie is refused before anything listens', async () => {
  await assert.rejects(listen('tcp:127.0.0.1:0'), { code: 'E_COOKIE', hint: /secret/ });
});

for (const dialect of ['v7', 'v9', 'v12'] as const) {
  test(`dialect ${dialect} is found out`, async () => {
    const { server: tool } = await server({ dialect: 'auto' });
    const [guest] = await Promise.all([nextGuest(tool), machine(tool.address, 'x', dialect)]);
    assert.equal(guest.dialect, dialect);
    assert.equal(guest.vcpus.length, 2);
    await guest.detach();
    await tool.close();
  });
}

test('several guests at once, each with its own events', async () => {
  const { server: tool } = await server();
  const names = ['a', 'b', 'c', 'd', 'e'];
  const machines = Promise.all(names.map((name) => machine(tool.address, name)));
  const guests: Guest[] = [];
  for await (const guest of tool) {
    guest.on('HYPERCALL', () => (guest.name === 'c' ? 'crash' : 'continue'));
    guests.push(guest);
    if (guests.length === names.length) break;
  }
  assert.deepEqual(guests.map(({ name }) => name).sort(), names);
  const answers = await Promise.all((await machines).map(({ host }) => host.event('HYPERCALL', 0, {})));
  assert.deepEqual(
    answers.map(({ action }) => action),
    ['continue', 'continue', 'crash', 'continue', 'continue'],
  );
  await Promise.all(guests.map((guest) => guest.detach()));
  await tool.close();
});

const failures: readonly [title: string, misbehave: (channel: Channel) => void, code: string][] = [
  ['says nothing', () => {}, 'E_TIMEOUT'],
  ['hangs up', (channel) => channel.shutdown(), 'E_CLOSED'],
  ['announces a tiny structure', (channel) => channel.write(Uint8Array.of(4, 0, 0, 0)), 'E_HANDSHAKE'],
  ['announces a huge one', (channel) => channel.write(Uint8Array.of(0, 0, 0, 1)), 'E_HANDSHAKE'],
  ['sends half of it', (channel) => channel.write(encodeHello(hello).subarray(0, 50)), 'E_TIMEOUT'],
  ['sends too much', (channel) => channel.write(new Uint8Array([...encodeHello(hello), 0])), 'E_HANDSHAKE'],
  ['does not answer GET_VERSION', (channel) => channel.write(encodeHello(hello)), 'E_TIMEOUT'],
];
const hello = { uuid, name: 'bad', startTime: 0 };

test('a peer that fails is hung up on and reported; the others are not disturbed', async () => {
  const { server: tool, errors } = await server({ handshakeTimeout: 100, requestTimeout: 100 });
  const bad = failures.map(async ([title, misbehave, code]) => {
    const channel = await connect(tool.address);
    const closed = deferred<void>();
    channel.open({ data() {}, close: () => closed.resolve() });
    misbehave(channel);
    await closed.promise;
    await turn();
    return [title, code] as const;
  });
  const [guest] = await Promise.all([nextGuest(tool), machine(tool.address, 'good')]);
  assert.equal(guest.name, 'good');
  const expected = (await Promise.all(bad)).map(([, code]) => code).sort();
  while (errors.length < failures.length) await turn();
  assert.deepEqual(errors.map((error) => (error.cause as KvmiError).code).sort(), expected);
  assert.ok(errors.every((error) => error.code === 'E_CONNECT' && error.message.includes(tool.address)));
  await guest.detach();
  await tool.close();
});

test('a host of another version, or one that refuses, is not taken', async () => {
  for (const prepare of [
    (host: ScriptedHost) => host.on('GET_VERSION', () => ({ version: 0, max_msg_size: 0, singlestep: 0 })),
    (host: ScriptedHost) => host.on('GET_VERSION', () => 22),
    (host: ScriptedHost) => host.on('VM_GET_INFO', () => 22),
  ]) {
    const [channel, other] = loopback();
    const host = prepare(new ScriptedHost(other)).open();
    assert.match(await codeOf(connectGuest(channel, { hello })), /E_PROTOCOL|E_REPLY/);
    await turn();
    assert.ok(host.closed);
  }
});

test('permissions that come a little after the hook are waited for', async () => {
  const [channel, other] = loopback();
  let refusals = 3;
  const host = new ScriptedHost(other)
    .on('VM_GET_INFO', () => (refusals-- > 0 ? 1 : { vcpu_count: 1 }))
    .open();
  const guest = await connectGuest(channel, { hello });
  assert.equal(guest.vcpus.length, 1);
  assert.equal(host.got('VM_GET_INFO').length, 4);
});

test('permissions that never come are an error', async () => {
  const [channel, other] = loopback();
  new ScriptedHost(other).on('VM_GET_INFO', () => 1).open();
  assert.equal(await codeOf(connectGuest(channel, { hello })), 'E_REPLY');
});

test('close hangs up on peers in their handshake and on guests that nobody took', async () => {
  const { server: tool, errors } = await server();
  const taken = nextGuest(tool);
  const first = await machine(tool.address, 'taken');
  const guest = await taken;
  const second = await machine(tool.address, 'waiting');
  while (second.host.got('VM_GET_INFO').length === 0) await turn();
  const third = await connect(tool.address);
  const hungUp = deferred<void>();
  third.open({ data() {}, close: () => hungUp.resolve() });
  await tool.close();
  await tool.close();
  await hungUp.promise;
  while (!second.host.closed) await turn();
  assert.equal(first.host.closed, false, 'the guest that was taken stays');
  assert.equal(await codeOf(connect(tool.address)), 'E_CONNECT');
  await assert.rejects(nextGuest(tool), /closed/);
  assert.deepEqual(errors, []);
  await guest.detach();
});

test('a flood of peers that never introduce themselves is bounded', async () => {
  const { server: tool } = await server({ handshakeTimeout: 200 });
  let closed = 0;
  const channels: Channel[] = [];
  for (let i = 0; i < 200; i++) {
    const channel = await connect(tool.address);
    channel.open({ data() {}, close: () => closed++ });
    channels.push(channel);
  }
  while (closed < 136) await turn();
  while (closed < 200) await new Promise((resolve) => setTimeout(resolve, 10));
  const [guest] = await Promise.all([nextGuest(tool), machine(tool.address, 'after the flood')]);
  await guest.detach();
  await tool.close();
});

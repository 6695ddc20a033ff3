import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createConnection, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { KvmiError } from '../error.ts';
import type { Channel } from './channel.ts';
import { connect, type Listener, listen } from './net.ts';

const directory = mkdtempSync(join(tmpdir(), 'kvmi-net-'));
after(() => rmSync(directory, { recursive: true }));

let sockets = 0;
function freshPath(): string {
  return join(directory, `${sockets++}.sock`);
}

const LIMIT_MS = 20_000;

/** Waits for `condition`, one turn of the event loop at a time. */
async function until(what: string, condition: () => boolean): Promise<void> {
  const end = Date.now() + LIMIT_MS;
  while (!condition()) {
    assert.ok(Date.now() < end, `${what} did not happen`);
    await turn();
  }
}

class Recorder {
  readonly channel: Channel;
  received = 0;
  chunks: Uint8Array[] = [];
  closes = 0;
  error: Error | undefined;

  constructor(channel: Channel) {
    this.channel = channel;
    channel.open({
      data: (bytes) => {
        this.received += bytes.length;
        this.chunks.push(bytes);
      },
      close: (error) => {
        this.closes++;
        this.error = error;
      },
    });
  }

  get text(): string {
    return Buffer.concat(this.chunks).toString();
  }
}

async function pair(address: string): Promise<{ listener: Listener; client: Channel; server: Channel }> {
  const accepted: Channel[] = [];
  const listener = await listen(address, (channel) => accepted.push(channel));
  const client = await connect(listener.address);
  await until('the connection', () => accepted.length === 1);
  return { listener, client, server: accepted[0]! };
}

for (const address of ['unix', 'tcp:127.0.0.1:0', 'tcp:[::1]:0']) {
  test(`${address}: bytes go both ways and a shutdown closes both ends once`, async (t) => {
    const connected = await pair(address === 'unix' ? `unix:${freshPath()}` : address).catch(
      (error) => error,
    );
    if (connected instanceof KvmiError && address.includes('::1')) return t.skip('no IPv6 on this host');
    const { listener, client, server } = connected;
    const [a, b] = [new Recorder(client), new Recorder(server)];
    client.write(Buffer.from('ping'));
    server.write(Buffer.from('pong'));
    await until('delivery', () => a.text === 'pong' && b.text === 'ping');
    client.write(Buffer.from('!'));
    client.shutdown();
    client.write(Buffer.from('never'));
    await until('both closes', () => a.closes > 0 && b.closes > 0);
    await turn();
    assert.deepEqual([a.closes, b.closes, b.text, a.error, b.error], [1, 1, 'ping!', undefined, undefined]);
    await listener.close();
  });
}

test('the address of a listener has the port that the system chose, and the peer is named', async () => {
  const { listener, client, server } = await pair('tcp:127.0.0.1:0');
  assert.match(listener.address, /^tcp:127\.0\.0\.1:[1-9]\d*$/);
  assert.equal(client.peer, listener.address);
  assert.match(server.peer, /^tcp:127\.0\.0\.1:\d+$/);
  client.shutdown();
  server.shutdown();
  await listener.close();
});

test('everything written in one turn is one chunk for the peer, and counts as backlog until then', async () => {
  const { listener, client, server } = await pair(`unix:${freshPath()}`);
  const b = new Recorder(server);
  new Recorder(client);
  for (let i = 0; i < 100; i++) client.write(Buffer.from('12345678'));
  assert.equal(client.backlog, 800);
  await until('delivery', () => b.received === 800);
  assert.equal(b.chunks.length, 1);
  assert.equal(client.backlog, 0);
  client.shutdown();
  await listener.close();
});

test('bytes that arrive before open are delivered by open', async () => {
  const { listener, client, server } = await pair(`unix:${freshPath()}`);
  client.write(Buffer.from('early'));
  client.shutdown();
  for (let i = 0; i < 10; i++) await turn();
  const b = new Recorder(server);
  await until('the close', () => b.closes === 1);
  assert.equal(b.text, 'early');
  await listener.close();
});

test('open replaces the handler', async () => {
  const { listener, client, server } = await pair(`unix:${freshPath()}`);
  const first = new Recorder(server);
  client.write(Buffer.from('1'));
  await until('delivery', () => first.text === '1');
  const second = new Recorder(server);
  client.write(Buffer.from('2'));
  await until('delivery', () => second.text === '2');
  client.shutdown();
  await until('the close', () => second.closes === 1);
  assert.deepEqual([first.text, first.closes], ['1', 0]);
  await listener.close();
});

test('a pause stops reading: a flood backs up at the sender', async () => {
  const { listener, client, server } = await pair(`unix:${freshPath()}`);
  const b = new Recorder(server);
  new Recorder(client);
  server.pause();
  const flood = Buffer.alloc(1 << 20);
  for (let i = 0; i < 32; i++) client.write(flood);
  for (let i = 0; i < 200; i++) await turn();
  assert.equal(b.received, 0);
  assert.ok(client.backlog > 30 << 20, `only ${client.backlog} bytes are held back`);
  server.resume();
  await until('delivery', () => b.received === 32 << 20);
  client.shutdown();
  await listener.close();
});

test('drain tells when a backlog is gone', async () => {
  const { listener, client, server } = await pair(`unix:${freshPath()}`);
  const b = new Recorder(server);
  let drained = 0;
  client.open({
    data() {},
    close() {},
    drain() {
      assert.equal(client.backlog, 0);
      drained++;
    },
  });
  server.pause();
  for (let i = 0; i < 8; i++) client.write(Buffer.alloc(1 << 20));
  for (let i = 0; i < 50; i++) await turn();
  assert.equal(drained, 0);
  server.resume();
  await until('the drain', () => drained > 0);
  await until('delivery', () => b.received === 8 << 20);
  client.write(Buffer.from('little'));
  await until('the second drain', () => drained === 2);
  client.shutdown();
  await listener.close();
});

test('a pause before open holds delivery back', async () => {
  const { listener, client, server } = await pair(`unix:${freshPath()}`);
  server.pause();
  const b = new Recorder(server);
  client.write(Buffer.from('x'));
  for (let i = 0; i < 20; i++) await turn();
  assert.equal(b.received, 0);
  server.resume();
  await until('delivery', () => b.text === 'x');
  client.shutdown();
  await listener.close();
});

test('a shutdown delivers a backlog first', async () => {
  const { listener, client, server } = await pair(`unix:${freshPath()}`);
  const b = new Recorder(server);
  server.pause();
  for (let i = 0; i < 8; i++) client.write(Buffer.alloc(1 << 20));
  client.shutdown();
  for (let i = 0; i < 20; i++) await turn();
  server.resume();
  await until('the close', () => b.closes === 1);
  assert.equal(b.received, 8 << 20);
  await listener.close();
});

/** A plain socket connected to a channel, for peers that misbehave. */
async function rawPeer(): Promise<{ listener: Listener; raw: Socket; channel: Channel }> {
  const path = freshPath();
  const accepted: Channel[] = [];
  const listener = await listen(`unix:${path}`, (channel) => accepted.push(channel));
  const raw = createConnection({ path, allowHalfOpen: true });
  raw.on('error', () => {});
  await until('the connection', () => accepted.length === 1);
  return { listener, raw, channel: accepted[0]! };
}

test('a peer that half-closes has hung up, even if it never reads what it is sent', async () => {
  const { listener, raw, channel } = await rawPeer();
  const recorder = new Recorder(channel);
  channel.write(Buffer.alloc(8 << 20));
  raw.pause();
  raw.end('bye');
  await until('the close', () => recorder.closes === 1);
  assert.deepEqual([recorder.text, recorder.error], ['bye', undefined]);
  const started = Date.now();
  await new Promise((resolve) => {
    raw.resume();
    raw.once('close', resolve);
    raw.once('end', () => raw.destroy());
  });
  assert.ok(Date.now() - started < 10_000);
  await listener.close();
});

test('a peer that takes nothing delays a shutdown only for a bounded time', async () => {
  const { listener, raw, channel } = await rawPeer();
  raw.pause();
  const recorder = new Recorder(channel);
  channel.write(Buffer.alloc(8 << 20));
  await until('a backlog', () => channel.backlog > 0);
  channel.shutdown();
  await until('the close', () => recorder.closes === 1);
  // Reading would let the shutdown finish; the reset shows that the channel gave up by itself.
  await until('the reset', () => {
    raw.write('x');
    return raw.destroyed;
  });
  await listener.close();
});

test('a peer that dies with unread bytes is a hang-up, not an error', async () => {
  const { listener, raw, channel } = await rawPeer();
  const recorder = new Recorder(channel);
  channel.write(Buffer.alloc(1 << 20));
  await turn();
  raw.destroy();
  await until('the close', () => recorder.closes === 1);
  assert.equal(recorder.error, undefined);
  channel.write(Buffer.from('into the void'));
  await listener.close();
});

test('a Unix socket is 0600, leaves nothing beside it, and is removed on close', async () => {
  const path = freshPath();
  const before = readdirSync(directory);
  const listener = await listen(`unix:${path}`, () => {});
  assert.equal(statSync(path).mode & 0o777, 0o600);
  assert.deepEqual(new Set(readdirSync(directory)), new Set([...before, path.slice(directory.length + 1)]));
  await listener.close();
  await listener.close();
  assert.equal(existsSync(path), false);
});

test('a socket that somebody left behind is replaced', async () => {
  const path = freshPath();
  const listener = await listen(`unix:${path}`, () => {});
  const stale = createServer();
  await new Promise<void>((resolve) => stale.listen(`${path}.old`, resolve));
  await listener.close();
  // Linking keeps the name when the server removes its own.
  const { linkSync } = await import('node:fs');
  linkSync(`${path}.old`, path);
  await new Promise((resolve) => stale.close(resolve));
  assert.ok(statSync(path).isSocket());
  const again = await listen(`unix:${path}`, () => {});
  const client = await connect(`unix:${path}`);
  client.shutdown();
  await again.close();
});

async function codeOf(promise: Promise<unknown>): Promise<string> {
  try {
    await promise;
  } catch (error) {
    assert.ok(error instanceof KvmiError, String(error));
    assert.ok(error.hint, `${error.code} has no hint`);
    return error.code;
  }
  return 'no error';
}

test('a path in use, a file, a missing directory and a long path are refused', async () => {
  const path = freshPath();
  const listener = await listen(`unix:${path}`, () => {});
  assert.equal(await codeOf(listen(`unix:${path}`, () => {})), 'E_IN_USE');
  const client = await connect(`unix:${path}`);
  client.shutdown();
  await listener.close();

  const file = freshPath();
  writeFileSync(file, 'precious');
  assert.equal(await codeOf(listen(`unix:${file}`, () => {})), 'E_LISTEN');
  assert.ok(existsSync(file));
  assert.equal(await codeOf(listen(`unix:${directory}/none/x`, () => {})), 'E_LISTEN');
  assert.equal(await codeOf(listen(`unix:${directory}/${'x'.repeat(120)}`, () => {})), 'E_LISTEN');
});

test('a listener that was replaced does not remove its successor', async () => {
  const path = freshPath();
  const first = await listen(`unix:${path}`, () => {});
  rmSync(path);
  const second = await listen(`unix:${path}`, () => {});
  await first.close();
  const client = await connect(`unix:${path}`);
  client.shutdown();
  await second.close();
});

test('connecting to nothing and to vsock fails with a code and a hint', async () => {
  assert.equal(await codeOf(connect(`unix:${freshPath()}`)), 'E_CONNECT');
  assert.equal(await codeOf(connect('tcp:127.0.0.1:1')), 'E_CONNECT');
  assert.equal(await codeOf(connect('vsock:2:4321')), 'E_UNSUPPORTED');
  assert.equal(await codeOf(listen('vsock:2:4321', () => {})), 'E_UNSUPPORTED');
  assert.equal(await codeOf(connect('nonsense')), 'E_ADDRESS');
});

test('a TCP port in use is refused', async () => {
  const listener = await listen('tcp:127.0.0.1:0', () => {});
  assert.equal(await codeOf(listen(listener.address, () => {})), 'E_LISTEN');
  await listener.close();
});

test('1000 connections leave no file descriptor behind', { skip: !existsSync('/proc/self/fd') }, async () => {
  const path = freshPath();
  const recorders: Recorder[] = [];
  const listener = await listen(`unix:${path}`, (channel) => recorders.push(new Recorder(channel)));
  const cycle = async () => {
    const client = new Recorder(await connect(`unix:${path}`));
    client.channel.write(Buffer.from('x'));
    client.channel.shutdown();
    await until('the close', () => client.closes === 1 && (recorders.at(-1)?.closes ?? 0) === 1);
    recorders.length = 0;
  };
  for (let i = 0; i < 20; i++) await cycle();
  const before = readdirSync('/proc/self/fd').length;
  for (let i = 0; i < 1000; i++) await cycle();
  await until('the descriptors to go away', () => readdirSync('/proc/self/fd').length <= before);
  await listener.close();
});

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { EventEmitter, once } from 'node:events';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { connect as connectSocket, createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, beforeEach, describe, test } from 'node:test';
import { deferred } from '../../../awaitable.ts';
import { runtimeDirectory } from '../../../system/runtime-directory.ts';
import { UnixQmp } from '../unix-qmp.ts';
import { parseSockets } from './busy.ts';
import { YIELD } from './offer.ts';
import { identityOf, offerPath } from './offer-path.ts';
import { SharedQmp } from './shared-qmp.ts';

const CONNECTION = 'a connection';
/** The sharers that a holder serves at once, and how long it leaves QEMU's socket to who has asked for it. */
const SHARERS = 64;
const COURTESY_MS = 300;

/** False: it is hung up on. */
function isGreeted(socket: Socket): Promise<boolean> {
  return new Promise((resolve) => {
    socket.once('data', () => resolve(true));
    socket.once('close', () => resolve(false));
  });
}

/** What a process that was killed while it listened there has left. */
function abandonSocket(path: string): void {
  const listen = `require('net').createServer().listen(process.argv[1], () => process.kill(process.pid, 'SIGKILL'))`;
  spawnSync(process.execPath, ['-e', listen, path]);
  assert.ok(existsSync(path));
}

/** Serves one client at a time, as QEMU does; answers every command with its own name and the command's. */
class Monitor {
  readonly #name: string;
  readonly #path: string;
  readonly #server: Server;
  readonly #waiting: Socket[] = [];
  #served: Socket | undefined;
  /** Commands that were carried out. */
  readonly commands: string[] = [];
  /** Answers wait for it. */
  mayAnswer: Promise<void> = Promise.resolve();
  readonly #received = new EventEmitter();

  static async at(path: string, name: string): Promise<Monitor> {
    const monitor = new Monitor(path, name);
    await new Promise<void>((resolve) => monitor.#server.listen(path, resolve));
    return monitor;
  }

  private constructor(path: string, name: string) {
    this.#path = path;
    this.#name = name;
    this.#server = createServer((socket) => {
      socket.on('error', () => {});
      this.#waiting.push(socket);
      this.#received.emit(CONNECTION);
      this.#serve();
    });
  }

  /** Resolves when a command arrives, or a {@link CONNECTION}. */
  async received(what: string): Promise<void> {
    await once(this.#received, what);
  }

  /** As when QEMU is killed: everything is closed. */
  kill(): void {
    this.#server.close();
    rmSync(this.#path, { force: true });
    for (const socket of [this.#served, ...this.#waiting]) socket?.destroy();
  }

  #serve(): void {
    if (this.#served) return;
    const socket = this.#waiting.shift();
    if (!socket) return;
    this.#served = socket;
    socket.on('close', () => {
      this.#served = undefined;
      this.#serve();
    });
    if (socket.destroyed) socket.emit('close');
    socket.write('{"QMP":{"version":{},"capabilities":[]}}\n');
    socket.on('data', async (chunk: Buffer) => {
      for (const line of chunk.toString().trim().split('\n')) {
        const { execute, id } = JSON.parse(line) as { execute: string; id: number };
        this.commands.push(execute);
        this.#received.emit(execute);
        await this.mayAnswer;
        socket.write(`${JSON.stringify({ return: `${this.#name} ${execute}`, id })}\n`);
      }
    });
  }
}

describe('a QMP socket that is shared', { skip: runtimeDirectory() ? false : 'no private directory' }, () => {
  const directory = mkdtempSync(join(tmpdir(), 'kvmi-shared-'));
  const path = join(directory, 'qmp');
  let monitor: Monitor;
  let open: SharedQmp[];

  beforeEach(async () => {
    monitor = await Monitor.at(path, 'first');
    open = [];
  });
  afterEach(async () => {
    for (const qmp of open) await qmp.close();
    monitor.kill();
  });
  after(() => rmSync(directory, { recursive: true }));

  async function connect(): Promise<SharedQmp> {
    const qmp = await SharedQmp.connect(path);
    open.push(qmp);
    return qmp;
  }

  test('many that start at once are all served', async () => {
    const all = await Promise.all(Array.from({ length: 20 }, connect));
    const answers = await Promise.all(all.map((qmp) => qmp.execute('query-status')));
    assert.deepEqual(new Set(answers), new Set(['first query-status']));
  });

  test('when the holder ends, another one takes its place, and again', async () => {
    const all = [await connect(), await connect(), await connect()];
    for (const qmp of all) {
      await Promise.all(open.map((each) => each.execute('query-name')));
      open.shift();
      await qmp.close();
    }
  });

  test('another QEMU at the same path is not taken for the one before', async () => {
    const [holder, sharer] = [await connect(), await connect()];
    await sharer.execute('query-name');
    monitor.kill();
    monitor = await Monitor.at(path, 'second');
    await assert.rejects(holder.execute('query-name'), { code: 'E_QMP_CLOSED' });
    await assert.rejects(sharer.execute('query-name'), { code: 'E_QMP_CLOSED' });
    assert.equal(await (await connect()).execute('query-name'), 'second query-name');
  });

  test('one at a time has claimed the VM', async () => {
    const [first, second] = [await connect(), await connect()];
    await second.claim();
    await assert.rejects(async () => first.claim(), { code: 'E_BUSY' });
    await assert.rejects(first.execute('stop'), { code: 'E_BUSY' });
    assert.equal(await first.execute('query-name'), 'first query-name');
    assert.equal(await second.execute('stop'), 'first stop');
    second.release();
    await first.claim();
    assert.equal(await first.execute('cont'), 'first cont');
    assert.equal(await second.execute('query-name'), 'first query-name');
  });

  test('all that claim at once: one gets the VM, and everybody goes on', async () => {
    const all = await Promise.all(Array.from({ length: 6 }, connect));
    const claims = await Promise.allSettled(all.map(async (qmp) => qmp.claim()));
    assert.equal(claims.filter(({ status }) => status === 'fulfilled').length, 1);
    for (const qmp of all) assert.equal(await qmp.execute('query-name'), 'first query-name');
  });

  test('two claims of one process, with commands under way, are both answered', async () => {
    const { promise, resolve } = deferred<void>();
    const [first, second] = [await connect(), await connect()];
    monitor.mayAnswer = promise;
    const reads = Array.from({ length: 5 }, () => second.execute('query-name'));
    const claims = Promise.all([second.claim(), second.claim()]);
    resolve();
    await Promise.all(reads);
    await claims;
    void first;
  });

  test('no more than some share at once, and a place that is left is given to the next one', async () => {
    await connect();
    const offer = offerPath(identityOf(path))!;
    const sharers = Array.from({ length: SHARERS + 3 }, () => connectSocket(offer).on('error', () => {}));
    const greeted = await Promise.all(sharers.map(isGreeted));
    assert.equal(greeted.filter(Boolean).length, SHARERS);
    for (const socket of sharers) socket.destroy();
    const next = async (): Promise<boolean> => {
      const socket = connectSocket(offer).on('error', () => {});
      const is = await isGreeted(socket);
      socket.destroy();
      return is || next();
    };
    assert.ok(await next());
  });

  test('who gives the socket up does not take it back at once', async () => {
    const holder = await connect();
    const taker = await UnixQmp.connect(offerPath(identityOf(path))!);
    await taker.execute(YIELD);
    const yielded = performance.now();
    const again = monitor.received(CONNECTION);
    const read = holder.execute('query-name');
    await again;
    const after = performance.now() - yielded;
    // Timers may be a little early.
    assert.ok(after > COURTESY_MS * 0.9, `it is back after ${after} ms`);
    assert.equal(await read, 'first query-name', 'nobody else came');
    taker.close();
  });

  test('sockets of killed holders are removed by the next one, and no others', async () => {
    const socket = (name: string) => join(runtimeDirectory()!, `qmp-${name.repeat(16)}`);
    const [dead, unpublished, live, other] = [
      socket('a'),
      `${socket('b')}.1`,
      socket('c'),
      `${socket('d')}x`,
    ];
    for (const each of [dead, unpublished, other]) abandonSocket(each);
    const server = createServer().listen(live);
    try {
      await connect();
      assert.ok(!existsSync(dead));
      assert.ok(!existsSync(unpublished));
      assert.ok(existsSync(live), 'somebody listens there');
      assert.ok(existsSync(other), 'it is none of kvmi');
    } finally {
      server.close();
      rmSync(other);
    }
  });

  test('who holds the socket answers what is being carried out before it leaves', async () => {
    const [holder, sharer] = [await connect(), await connect()];
    const { promise: mayAnswer, resolve: answer } = deferred<void>();
    monitor.mayAnswer = mayAnswer;
    const answers = Array.from({ length: 50 }, () => sharer.execute('query-name'));
    await monitor.received('query-name');
    open.shift();
    const left = holder.close();
    answer();
    await left;
    assert.deepEqual(new Set(await Promise.all(answers)), new Set(['first query-name']));
    const carriedOut = monitor.commands.filter((command) => command === 'query-name');
    assert.equal(carriedOut.length, answers.length, 'none is carried out twice');
  });
});

test('what `ss` prints is read', () => {
  const text = [
    'u_str LISTEN 0 1 /run/vm qmp 100 * 0 users:(("qemu-system-x86",pid=7,fd=11))',
    'u_str ESTAB  0 0 /run/vm qmp 101 * 102 users:(("qemu-system-x86",pid=7,fd=12))',
    'u_str ESTAB  0 0 * 102 * 101 users:(("socat",pid=9,fd=5),("sh",pid=8,fd=5))',
    'nonsense',
  ].join('\n');
  assert.deepEqual(parseSockets(text), [
    { path: '/run/vm qmp', inode: '100', peer: '0', connected: false, pids: [7] },
    { path: '/run/vm qmp', inode: '101', peer: '102', connected: true, pids: [7] },
    { path: '*', inode: '102', peer: '101', connected: true, pids: [9, 8] },
  ]);
});

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, beforeEach, describe, test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import fc from 'fast-check';
import { type Log, type ServeEnd, type ServeOptions, serve, vmLabel } from '../../src/host/index.ts';
import { type Guest, listen, type ToolServer } from '../../src/tool/index.ts';
import { connect } from '../../src/transport/index.ts';
import {
  type CommandName,
  DIALECTS,
  decodeEvent,
  encodeAnswer,
  encodeCommand,
  encodeEventReply,
  FrameDecoder,
  HandshakeError,
  HEADER_SIZE,
  isEvent,
  MAX_PAYLOAD,
  putHeader,
  type ReceivedEvent,
  type Requests,
} from '../../src/wire/index.ts';
import { MiniGuest } from '../kit/mini-guest.ts';
import { patiently } from '../kit/peer.ts';
import { resources } from '../kit/resources.ts';
import { Watch } from '../kit/watch.ts';

/*
 * One process serves two machines. The tool of the first is hostile; the second has a tool that never waits
 * long for an answer, the first guest goes on and can be hooked again.
 */

const V12 = DIALECTS.v12;
const ROUNDS = 20;
const ANSWER_LIMIT_MS = 2000;
/** What a tool may make the host side keep: its limit of unread replies, the sockets' buffers, and headroom. */
const MEMORY_LIMIT = 24 * 2 ** 20;
const CR4_OSXSAVE = 1n << 18n;
/** Commands with which a tool may ruin its guest by right. */
const HARMFUL = new Set<CommandName>([
  'VM_WRITE_PHYSICAL',
  'VCPU_SET_REGISTERS',
  'VCPU_SET_XSAVE',
  'VCPU_INJECT_EXCEPTION',
]);
const HARMLESS = V12.commands.map(({ name }) => name).filter((name) => !HARMFUL.has(name));

let directory: string;
let victim: MiniGuest;
let bystander: MiniGuest;
let honest: ToolServer;
let honestGuests: AsyncIterator<Guest>;
let watch: Watch;
let neighbour: Guest;
let neighbourServed: Promise<ServeEnd>;
let hostile: Server;
let lines: string[];

const collect = (line: string): void => void lines.push(line);
const log: Log = { info: collect, warn: collect, error: collect };

before(async () => {
  directory = mkdtempSync(join(tmpdir(), 'kvmi-hostile-'));
  [victim, bystander] = await Promise.all([MiniGuest.boot(), MiniGuest.boot({ name: 'bystander' })]);
  honest = await listen(`unix:${join(directory, 'honest')}`);
  honestGuests = honest[Symbol.asyncIterator]();
  hostile = createServer({ allowHalfOpen: true });
  hostile.listen(join(directory, 'hostile'));
  await once(hostile, 'listening');
  neighbourServed = serve(bystander.machine, await connect(honest.address));
  neighbour = (await honestGuests.next()).value;
});

after(async () => {
  await neighbour.detach();
  assert.equal(await neighbourServed, 'tool', 'the second hook lasted until its tool hung up');
  await bystander.expectAlive();
  await honest.close();
  hostile.close();
  await victim.machine.close();
  await bystander.machine.close();
  rmSync(directory, { recursive: true });
});

beforeEach(() => {
  lines = [];
  watch = new Watch(() => neighbour.vcpus[0]!.registers());
});

afterEach(async () => {
  const longest = await watch.stop();
  assert.ok(longest < ANSWER_LIMIT_MS, `the second hook let its tool wait ${Math.round(longest)} ms`);
  await victim.expectAlive();
  const served = serve(victim.machine, await connect(honest.address));
  const { value: guest } = await honestGuests.next();
  assert.notEqual((await guest.vcpus[0]!.registers()).rip, 0n, 'the first machine is hooked again');
  await guest.detach();
  assert.equal(await served, 'tool');
  await victim.expectAlive();
  const label = vmLabel(victim.machine.name, victim.machine.uuid);
  for (const line of lines) assert.ok(line.startsWith(`${label}: `), `a line without the VM: ${line}`);
});

/** The hostile end of a connection. */
class Attacker {
  readonly socket: Socket;
  readonly closed: Promise<unknown>;
  readonly #events: ReceivedEvent[] = [];
  #waiter: ((event: ReceivedEvent) => void) | undefined;
  #seq = 1;

  constructor(socket: Socket) {
    this.socket = socket;
    this.closed = new Promise((resolve) => socket.once('close', resolve));
    socket.on('error', () => {});
  }

  send(...parts: readonly Uint8Array[]): void {
    this.socket.write(Buffer.concat(parts));
  }

  handshake(): void {
    this.send(encodeAnswer());
  }

  bytes<N extends CommandName>(name: N, body: Requests[N]): Uint8Array {
    return encodeCommand(V12, name, this.#seq++, body, 0);
  }

  /** Reads from now on; the structure of the device manager is skipped. */
  listen(): void {
    let skip = 96;
    const decoder = new FrameDecoder((id, seq, payload) => {
      if (isEvent(V12, id, payload)) {
        const event = decodeEvent(V12, id, seq, payload.slice());
        if (this.#waiter) this.#waiter(event);
        else this.#events.push(event);
      }
      return true;
    });
    this.socket.on('data', (chunk: Buffer) => {
      const skipped = Math.min(skip, chunk.length);
      skip -= skipped;
      decoder.push(chunk.subarray(skipped));
    });
  }

  event(): Promise<ReceivedEvent> {
    const queued = this.#events.shift();
    if (queued) return Promise.resolve(queued);
    const arrived = new Promise<ReceivedEvent>((resolve) => {
      this.#waiter = resolve;
    });
    return patiently(arrived, 'an event');
  }

  /** Hooks and has writes to CR4 reported; the next one is under way. */
  async causeEvent(): Promise<{ event: ReceivedEvent; done: Promise<bigint> }> {
    this.listen();
    this.handshake();
    this.send(
      this.bytes('VCPU_CONTROL_EVENTS', { event_id: V12.event('CR')!.id, enable: 1 }),
      this.bytes('VCPU_CONTROL_CR', { cr: 4, enable: 1 }),
      this.bytes('VM_PAUSE_VCPU', { vcpu: 0, wait: 0 }),
    );
    this.send(encodeEventReply(V12, await this.event(), 'continue'));
    const done = victim.act('cr4', CR4_OSXSAVE);
    return { event: await this.event(), done };
  }

  /** Writes `chunk` again and again until the host side takes no more; returns how many bytes it took. */
  async flood(chunk: Uint8Array): Promise<number> {
    let written = 0;
    const stuck = Symbol('stuck');
    for (;;) {
      written += chunk.length;
      if (this.socket.write(chunk)) continue;
      const wait = new Promise((resolve) => setTimeout(resolve, 1000, stuck));
      const drained = new Promise((resolve) => this.socket.once('drain', resolve));
      if ((await Promise.race([drained, wait, this.closed])) === stuck || this.socket.destroyed)
        return written;
    }
  }
}

interface Served {
  readonly attacker: Attacker;
  /** Why the hook ended, or the error of the handshake. */
  readonly ended: Promise<ServeEnd | Error>;
}

async function attack(options: ServeOptions = {}): Promise<Served> {
  const accepted = once(hostile, 'connection') as Promise<[Socket]>;
  const channel = await connect(`unix:${join(directory, 'hostile')}`);
  const [socket] = await accepted;
  const ended = serve(victim.machine, channel, { log, ...options }).catch((error: Error) => error);
  return { attacker: new Attacker(socket), ended };
}

async function expectHandshakeError(ended: Promise<ServeEnd | Error>, text: RegExp): Promise<void> {
  const result = await patiently(ended, 'the hook to end');
  assert.ok(result instanceof HandshakeError, `the handshake failed: ${result}`);
  assert.match(result.message, text);
}

/** Bytes that differ from run to run; a failing test prints them. */
function garbage(limit: number): Uint8Array[] {
  return fc.sample(fc.uint8Array({ minLength: 4, maxLength: limit }), ROUNDS);
}

describe('a tool that sends garbage', { timeout: 60_000 }, () => {
  test('instead of its handshake', async () => {
    for (const bytes of garbage(8192)) {
      const { attacker, ended } = await attack({ handshakeTimeout: 200 });
      attacker.send(bytes);
      await expectHandshakeError(ended, /announces|sent no handshake/);
      attacker.socket.destroy();
    }
  });

  test('after half of its handshake', async () => {
    for (const bytes of garbage(8192)) {
      const { attacker, ended } = await attack({ handshakeTimeout: 200 });
      attacker.socket.write(encodeAnswer().subarray(0, 12));
      attacker.socket.end(bytes);
      const result = await patiently(ended, 'the hook to end');
      assert.ok(result === 'tool' || result instanceof HandshakeError, `ended: ${result}`);
      attacker.socket.destroy();
    }
  });

  test('after the hook', async () => {
    for (const bytes of garbage(65536)) {
      const { attacker, ended } = await attack({ allowCommands: HARMLESS });
      attacker.handshake();
      attacker.socket.resume();
      attacker.socket.end(bytes);
      assert.equal(
        await patiently(ended, 'the hook to end'),
        'tool',
        `after ${Buffer.from(bytes).toString('base64')}`,
      );
      attacker.socket.destroy();
    }
  });

  test('in well-formed messages', async () => {
    const message = fc.tuple(fc.nat(40), fc.uint8Array({ maxLength: 600 })).map(([id, payload]) => {
      const bytes = new Uint8Array(HEADER_SIZE + payload.length);
      putHeader(bytes, 0, id, payload.length, 7);
      bytes.set(payload, HEADER_SIZE);
      return bytes;
    });
    for (const messages of fc.sample(fc.array(message, { minLength: 50, maxLength: 200 }), ROUNDS)) {
      const { attacker, ended } = await attack({ allowCommands: HARMLESS });
      attacker.handshake();
      attacker.socket.resume();
      attacker.socket.end(Buffer.concat(messages));
      assert.equal(await patiently(ended, 'the hook to end'), 'tool');
      attacker.socket.destroy();
    }
  });
});

describe('a tool that never reads', { timeout: 60_000 }, () => {
  const floods: readonly [string, (attacker: Attacker) => Uint8Array][] = [
    ['VM commands', (attacker) => attacker.bytes('VM_READ_PHYSICAL', { gpa: 0, size: 4096 })],
    ['vCPU commands', (attacker) => attacker.bytes('VCPU_GET_XSAVE', {})],
    ['unknown commands', () => Uint8Array.of(200, 0, 0, 0, 1, 0, 0, 0)],
  ];
  for (const [what, command] of floods) {
    test(`and floods the host side with ${what}`, async () => {
      const before = resources().heap;
      const leaving = new AbortController();
      const { attacker, ended } = await attack({ signal: leaving.signal });
      attacker.socket.pause();
      attacker.handshake();
      const one = command(attacker);
      const many = Buffer.concat(Array.from({ length: Math.ceil(32768 / one.length) }, () => one));
      const taken = await attacker.flood(many);
      const kept = resources().heap - before;
      assert.ok(kept < MEMORY_LIMIT, `${kept} bytes are kept after a flood of ${taken}`);
      leaving.abort();
      assert.match(String(await patiently(ended, 'the hook to leave')), /^(aborted|tool)$/);
      attacker.socket.destroy();
    });
  }
});

describe('a tool that does not take part', { timeout: 60_000 }, () => {
  test('it connects and says nothing', async () => {
    const { attacker, ended } = await attack({ handshakeTimeout: 200 });
    await expectHandshakeError(ended, /sent no handshake in 200 ms/);
    attacker.socket.resume();
    attacker.socket.end();
    await patiently(attacker.closed, 'its connection to be closed');
  });

  test('it closes its half of the connection before and after the handshake', async () => {
    const before = await attack();
    before.attacker.socket.end();
    await expectHandshakeError(before.ended, /hung up during the handshake/);
    before.attacker.socket.destroy();
    const after = await attack();
    after.attacker.listen();
    after.attacker.socket.end(encodeAnswer());
    assert.equal(await patiently(after.ended, 'the hook to end'), 'tool');
    await patiently(after.attacker.closed, 'the other half to be closed');
  });

  test('it owes an answer to an event', async () => {
    const { attacker, ended } = await attack({ eventTimeout: 300 });
    const { done } = await attacker.causeEvent();
    assert.equal(await patiently(ended, 'the hook to end'), 'stalled');
    assert.ok((await patiently(done, 'the guest to go on')) > 0n, 'CR4 was written as the guest wanted');
    assert.match(lines.join('\n'), /owed an answer to an event for 300 ms/);
    attacker.socket.destroy();
  });
});

describe('a tool that breaks the protocol', { timeout: 60_000 }, () => {
  for (const size of [MAX_PAYLOAD + 1, 0xffff]) {
    test(`a header that announces ${size} bytes`, async () => {
      const { attacker, ended } = await attack();
      attacker.handshake();
      attacker.send(Uint8Array.of(2, 0, size & 0xff, size >> 8, 1, 0, 0, 0));
      assert.equal(await patiently(ended, 'the hook to end'), 'tool');
      assert.match(lines.join('\n'), new RegExp(`announces ${size} bytes`));
      attacker.socket.destroy();
    });
  }

  test('an event that is answered twice', async () => {
    const { attacker, ended } = await attack();
    const { event, done } = await attacker.causeEvent();
    const answer = encodeEventReply(V12, event, 'continue', {
      new_val: (event as ReceivedEvent<'CR'>).data.new_value,
    });
    attacker.send(answer, answer);
    assert.ok((await patiently(done, 'the guest to go on')) > 0n);
    assert.equal(await patiently(ended, 'the hook to end'), 'tool');
    assert.match(lines.join('\n'), /waits for no event reply/);
    attacker.socket.destroy();
  });

  test('millions of bytes, one at a time', async () => {
    const { attacker, ended } = await attack();
    attacker.handshake();
    let replied = 0;
    attacker.socket.on('data', (chunk: Buffer) => {
      replied += chunk.length;
    });
    const version = attacker.bytes('GET_VERSION', {});
    const bytes = Array.from(version, (byte) => Uint8Array.of(byte));
    const MESSAGES = 250_000;
    for (let message = 0; message < MESSAGES; message++) {
      let flowing = true;
      for (const byte of bytes) flowing = attacker.socket.write(byte);
      if (!flowing) await once(attacker.socket, 'drain');
      else if (message % 64 === 0) await turn();
    }
    attacker.socket.end();
    assert.equal(await patiently(ended, 'the hook to end'), 'tool');
    assert.ok(replied > 96 + MESSAGES * 32 * 0.9, `${replied} bytes of replies came`);
    attacker.socket.destroy();
  });
});

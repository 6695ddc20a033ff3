import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, beforeEach, describe, test } from 'node:test';
import { kernelAddress } from '../../src/drivers/embedded/index.ts';
import { type ServeEnd, serve } from '../../src/host/index.ts';
import { connect } from '../../src/transport/index.ts';
import {
  COMMAND,
  CONTINUE,
  EVENT,
  fields,
  LibkvmiClient,
  type LibkvmiEvent,
  onVcpu,
  RETRY,
} from '../kit/libkvmi-client.ts';
import { MiniGuest } from '../kit/mini-guest.ts';
import { patiently } from '../kit/peer.ts';

/* What libkvmi's hookguest and LibVMI's driver do, in their order, over a Unix socket in dialect v7. */

const MSR_STAR = 0xc0000081;
/** The legacy entry point in STAR, which nothing uses in long mode. */
const STAR_UNUSED_BIT = 1n;
const CR4_OSXSAVE = 1n << 18n;
const SYSTEM_CALL_MSRS = [0x174, 0x175, 0x176, 0xc0000080, 0xc0000081, 0xc0000082, 0xc0000083];
const READ_EXECUTE = 5;
const READ_WRITE_EXECUTE = 7;
const PAGE_SIZE = 4096;
const GUARDED_FRAMES = 20;
const PF_REPLY_SIZE = 272;

let directory: string;
let server: Server;
let guest: MiniGuest;
let client: LibkvmiClient;
let served: Promise<ServeEnd>;
let lines: string[];

before(async () => {
  directory = mkdtempSync(join(tmpdir(), 'kvmi-libkvmi-'));
  server = createServer();
  server.listen(join(directory, 'tool'));
  await once(server, 'listening');
});
after(() => {
  server.close();
  rmSync(directory, { recursive: true });
});

beforeEach(async () => {
  guest = await MiniGuest.boot({ vcpus: 2 });
  await guest.act('start_cpu', 1n);
  lines = [];
  const accepted = once(server, 'connection') as Promise<[Socket]>;
  const channel = await connect(`unix:${join(directory, 'tool')}`);
  client = new LibkvmiClient((await accepted)[0]);
  const log = { info: () => {}, warn: () => {}, error: (line: string) => void lines.push(line) };
  served = serve(guest.machine, channel, { dialect: 'v7', log, sendMemoryMap: true });
});
afterEach(async () => {
  client.close();
  assert.equal(await patiently(served, 'the hook to end'), 'tool');
  assert.deepEqual(lines, [], 'nothing went wrong');
  await guest.expectAlive();
  await guest.machine.close();
});

function controlEvents(vcpu: number, event: number, enable: number): Promise<Buffer> {
  return client.request(
    COMMAND.CONTROL_EVENTS,
    onVcpu(vcpu, fields([2, event], [1, enable], [1, 0], [4, 0])),
  );
}

function controlCr(vcpu: number, cr: number, enable: number): Promise<Buffer> {
  return client.request(COMMAND.CONTROL_CR, onVcpu(vcpu, fields([1, enable], [1, 0], [2, 0], [4, cr])));
}

function controlMsr(vcpu: number, msr: number, enable: number): Promise<Buffer> {
  return client.request(COMMAND.CONTROL_MSR, onVcpu(vcpu, fields([1, enable], [1, 0], [2, 0], [4, msr])));
}

function controlSinglestep(vcpu: number, enable: number): Promise<Buffer> {
  return client.request(
    COMMAND.CONTROL_SINGLESTEP,
    onVcpu(vcpu, fields([1, enable], [1, 0], [2, 0], [4, 0])),
  );
}

async function pauseAll(vcpus: number): Promise<void> {
  await client.batch(
    Array.from({ length: vcpus }, (_, vcpu) => [COMMAND.PAUSE_VCPU, onVcpu(vcpu, fields([8, 1]))] as const),
  );
}

function setPageAccess(gpa: bigint, access: number): Promise<Buffer> {
  const entry = fields([8, gpa], [1, access], [1, 0], [2, 0], [4, 0]);
  return client.request(COMMAND.SET_PAGE_ACCESS, Buffer.concat([fields([2, 0], [2, 1], [4, 0]), entry]));
}

/** The new value that the guest wants, as the answer to a CR or MSR event has it. */
function newValue(event: LibkvmiEvent): Buffer {
  return event.data.subarray(16, 24);
}

async function vcpuCount(): Promise<number> {
  const info = await client.request(COMMAND.GET_GUEST_INFO);
  assert.equal(info.length, 16);
  assert.equal(info.readUInt32LE(), 2, 'number of vCPUs');
  return info.readUInt32LE();
}

async function maxGfn(): Promise<bigint> {
  const reply = await client.request(COMMAND.GET_MAX_GFN);
  assert.equal(reply.readBigUInt64LE(), 4096n, 'a guest of 16 MiB');
  return reply.readBigUInt64LE();
}

/** hookguest's main loop. */
class HookGuest {
  readonly seen = new Map<number, number>();
  readonly #paused = new Set<number>();
  #guarding = false;

  async handle(event: LibkvmiEvent): Promise<void> {
    this.seen.set(event.id, (this.seen.get(event.id) ?? 0) + 1);
    if (event.id === EVENT.PAUSE_VCPU) await this.#pause(event);
    else if (event.id === EVENT.CR) await this.#cr(event);
    else if (event.id === EVENT.MSR) client.answer(event, CONTINUE, newValue(event));
    else if (event.id === EVENT.PF) await this.#pageFault(event);
    else assert.fail(`hookguest exits at event ${event.id}`);
  }

  async #pause(event: LibkvmiEvent): Promise<void> {
    await this.#guard(event.cr3 & ~0xfffn);
    if (!this.#paused.has(event.vcpu)) {
      this.#paused.add(event.vcpu);
      for (const each of [EVENT.CR, EVENT.MSR, EVENT.PF]) await controlEvents(event.vcpu, each, 1);
      if (event.vcpu === 0) await controlCr(0, 3, 1);
      await controlCr(event.vcpu, 4, 1);
      await controlMsr(event.vcpu, MSR_STAR, 1);
    }
    client.answer(event, CONTINUE);
  }

  async #guard(base: bigint): Promise<void> {
    if (this.#guarding || base === 0n) return;
    this.#guarding = true;
    for (let frame = 0; frame < GUARDED_FRAMES; frame++) {
      await setPageAccess(base + BigInt(frame * PAGE_SIZE), READ_EXECUTE);
    }
  }

  async #cr(event: LibkvmiEvent): Promise<void> {
    if (event.data.readUInt16LE() === 3) await controlCr(event.vcpu, 3, 0);
    client.answer(event, CONTINUE, newValue(event));
  }

  async #pageFault(event: LibkvmiEvent): Promise<void> {
    await setPageAccess(event.data.readBigUInt64LE(8), READ_WRITE_EXECUTE);
    client.answer(event, RETRY, Buffer.alloc(PF_REPLY_SIZE));
  }

  /** Handles events until `done`. */
  async until<T>(done: Promise<T>): Promise<T> {
    for (let event = await client.nextEvent(done); event; event = await client.nextEvent(done)) {
      await this.handle(event);
    }
    return done;
  }
}

describe('a client as libkvmi is one', { timeout: 60_000 }, () => {
  test('hookguest', async () => {
    const { uuid } = await client.accept();
    assert.deepEqual(Buffer.from(guest.machine.uuid), uuid, 'the UUID of the handshake');
    const vcpus = await vcpuCount();
    await pauseAll(vcpus);
    await maxGfn();
    const tool = new HookGuest();
    while ((tool.seen.get(EVENT.PAUSE_VCPU) ?? 0) < vcpus) await tool.handle((await client.nextEvent())!);

    const cr4 = await tool.until(guest.act('cr4', CR4_OSXSAVE));
    assert.equal(
      await tool.until(guest.act('cr4', CR4_OSXSAVE)),
      cr4 ^ CR4_OSXSAVE,
      'CR4 is as the guest wrote it',
    );
    const star = await tool.until(guest.act('rdmsr', BigInt(MSR_STAR)));
    const changed = star ^ STAR_UNUSED_BIT;
    assert.equal(await tool.until(guest.act('wrmsr', BigInt(MSR_STAR), changed)), changed, 'STAR');
    assert.equal(await tool.until(guest.act('wrmsr', BigInt(MSR_STAR), star)), star, 'STAR');
    await tool.until(guest.act('cr3'));
    for (const [name, id] of Object.entries({ CR: EVENT.CR, MSR: EVENT.MSR, PF: EVENT.PF })) {
      assert.ok(tool.seen.has(id), `${name} events came`);
    }
    assert.equal(tool.seen.get(EVENT.MSR), 2, 'one MSR event a write');
  });

  test("LibVMI's driver", async () => {
    const { features } = await client.accept();
    assert.equal(features.length, 4, 'spp, vmfunc, eptp, ve');
    const vcpus = await vcpuCount();
    const initial = [EVENT.CR, EVENT.MSR, EVENT.PF, EVENT.SINGLESTEP];
    for (let vcpu = 0; vcpu < vcpus; vcpu++) {
      for (const event of initial) await controlEvents(vcpu, event, 1);
    }
    const end = (await maxGfn()) * BigInt(PAGE_SIZE);
    for (const gpa of [0n, BigInt(kernelAddress('text_start')), end - BigInt(PAGE_SIZE)]) {
      const page = await client.request(COMMAND.READ_PHYSICAL, fields([8, gpa], [8, PAGE_SIZE]));
      assert.equal(page.length, PAGE_SIZE);
    }
    await registers(0, SYSTEM_CALL_MSRS);
    await registers(1, []);

    await pauseAll(vcpus);
    const paused = await pauseEvents(vcpus);
    for (const event of paused) {
      await client.request(COMMAND.SET_REGISTERS, onVcpu(event.vcpu, event.regs));
      client.answer(event, CONTINUE);
    }
    await breakpoint();
    await interceptions();
    await singleStep();

    await pauseAll(vcpus);
    const last = await pauseEvents(vcpus);
    for (let vcpu = 0; vcpu < vcpus; vcpu++) {
      await controlSinglestep(vcpu, 0);
      for (const event of initial) await controlEvents(vcpu, event, 0);
    }
    for (const event of last) client.answer(event, CONTINUE);
    await patiently(guest.act('cr4'), 'the guest to write CR4 without an event');
  });
});

async function registers(vcpu: number, msrs: readonly number[]): Promise<Buffer> {
  const list = fields([2, msrs.length], [2, 0], [4, 0], ...msrs.map((msr) => [4, msr] as const));
  const reply = await client.request(COMMAND.GET_REGISTERS, onVcpu(vcpu, list));
  assert.equal(reply.length, 472 + 16 * msrs.length, 'libkvmi takes no other size');
  assert.equal(reply.readUInt32LE(464), msrs.length);
  msrs.forEach((msr, i) => {
    assert.equal(reply.readUInt32LE(472 + 16 * i), msr);
  });
  return reply;
}

/** One PAUSE_VCPU event of each vCPU. */
async function pauseEvents(vcpus: number): Promise<LibkvmiEvent[]> {
  const events: LibkvmiEvent[] = [];
  while (events.length < vcpus) events.push(await expectEvent(EVENT.PAUSE_VCPU));
  assert.deepEqual(events.map((event) => event.vcpu).sort(), [0, 1]);
  return events;
}

async function expectEvent(id: number): Promise<LibkvmiEvent> {
  const event = (await client.nextEvent())!;
  assert.equal(event.id, id, 'the event');
  return event;
}

/** An int3 in guest code; the original byte comes back and the vCPU tries again. */
async function breakpoint(): Promise<void> {
  const gpa = kernelAddress('action_nop');
  for (const vcpu of [0, 1]) await controlEvents(vcpu, EVENT.BREAKPOINT, 1);
  const original = await client.request(COMMAND.READ_PHYSICAL, fields([8, gpa], [8, 1]));
  const write = (byte: number) => client.request(COMMAND.WRITE_PHYSICAL, fields([8, gpa], [8, 1], [1, byte]));
  await write(0xcc);
  const done = guest.act('nop', 0x1234n);
  const event = await expectEvent(EVENT.BREAKPOINT);
  assert.equal(event.data.readBigUInt64LE(), BigInt(gpa), 'where it is');
  assert.equal(event.data.readUInt8(8), 1, 'length of the instruction');
  await write(original[0]!);
  client.answer(event, RETRY);
  assert.equal(await patiently(done, 'the guest to go on'), 0x1234n, 'the instruction was carried out');
  for (const vcpu of [0, 1]) await controlEvents(vcpu, EVENT.BREAKPOINT, 0);
}

async function interceptions(): Promise<void> {
  const answered = async (action: string, id: number, argument = 0n): Promise<LibkvmiEvent> => {
    const done = guest.act(action, argument);
    const event = await expectEvent(id);
    client.answer(event, CONTINUE, id === EVENT.CR ? newValue(event) : undefined);
    await patiently(done, `the guest to do ${action}`);
    return event;
  };
  await controlEvents(0, EVENT.HYPERCALL, 1);
  await answered('vmcall', EVENT.HYPERCALL);
  await controlEvents(0, EVENT.HYPERCALL, 0);
  await controlEvents(0, EVENT.DESCRIPTOR, 1);
  assert.deepEqual([...(await answered('sgdt', EVENT.DESCRIPTOR)).data.subarray(0, 2)], [2, 0], 'GDTR, read');
  assert.deepEqual(
    [...(await answered('lgdt', EVENT.DESCRIPTOR)).data.subarray(0, 2)],
    [2, 1],
    'GDTR, written',
  );
  await controlEvents(0, EVENT.DESCRIPTOR, 0);
  await controlCr(0, 4, 1);
  await answered('cr4', EVENT.CR, CR4_OSXSAVE);
  await answered('cr4', EVENT.CR, CR4_OSXSAVE);
  await controlCr(0, 4, 0);
}

async function singleStep(): Promise<void> {
  await controlSinglestep(0, 1);
  for (let step = 0; step < 3; step++) client.answer(await expectEvent(EVENT.SINGLESTEP), CONTINUE);
  const last = await expectEvent(EVENT.SINGLESTEP);
  await controlSinglestep(0, 0);
  client.answer(last, CONTINUE);
}

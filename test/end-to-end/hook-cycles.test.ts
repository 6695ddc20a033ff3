import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { openQemu } from '../../src/drivers/qemu/index.ts';
import { serve } from '../../src/host/index.ts';
import type { Machine } from '../../src/machine/index.ts';
import { type Guest, listen, type ToolServer } from '../../src/tool/index.ts';
import { connect } from '../../src/transport/index.ts';
import { LinuxGuest, whyNoLinuxGuest } from '../kit/linux-guest.ts';
import { MiniGuest } from '../kit/mini-guest.ts';
import { type Resources, resources } from '../kit/resources.ts';

/*
 * Hooking and unhooking again and again, through real sockets, leaves nothing behind: neither in this process
 * nor in the guest.
 */

const WARM_UP = 100;
const CYCLES = 1000;
/** A cycle that kept the guest that the tool has, or the host side's hook, alive would be above. */
const LEAK_LIMIT = 2048;
/** What the heap grows by in any case while code is optimised; it levels off after some thousand cycles. */
const HEAP_NOISE = 1024 * 1024;
const SETTLE_MS = 5000;

let directory: string;
let server: ToolServer;
let guests: AsyncIterator<Guest>;

before(async () => {
  directory = mkdtempSync(join(tmpdir(), 'kvmi-cycles-'));
  server = await listen(`unix:${join(directory, 'tool')}`);
  guests = server[Symbol.asyncIterator]();
});
after(async () => {
  await server.close();
  rmSync(directory, { recursive: true });
});

/** Hook, the first registers, unhook. */
async function cycle(machine: Machine): Promise<void> {
  const served = serve(machine, await connect(server.address), { sendMemoryMap: true });
  const { value: guest } = await guests.next();
  const { rip } = await (guest as Guest).vcpus[0]!.registers();
  assert.notEqual(rip, 0n, 'the registers are those of a running guest');
  await (guest as Guest).detach();
  assert.equal(await served, 'tool', 'the hook ended because the tool hung up');
}

/** Sockets are closed by the event loop, a little after the tool and the host side are done with them. */
async function settled(before?: Resources): Promise<Resources> {
  const deadline = performance.now() + SETTLE_MS;
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, 50));
    const now = resources();
    if (before && now.descriptors <= before.descriptors) return now;
    if (performance.now() > deadline || !before) return now;
  }
}

/** Hooks `cycles` times; returns what the heap grew by, in bytes a cycle. */
async function expectNothingLeft(machine: Machine, cycles: number): Promise<number> {
  for (let i = 0; i < WARM_UP; i++) await cycle(machine);
  const before = await settled();
  for (let i = WARM_UP; i < cycles; i++) await cycle(machine);
  const after = await settled(before);
  const more = cycles - WARM_UP;
  assert.ok(
    after.descriptors <= before.descriptors,
    `${more} cycles left ${after.descriptors - before.descriptors} file descriptors open`,
  );
  assert.ok(after.threads <= before.threads, `${more} cycles left threads: ${after.threads}`);
  const grown = after.heap - before.heap;
  assert.ok(
    grown < HEAP_NOISE + more * LEAK_LIMIT,
    `${more} cycles left ${grown} bytes: ${Math.round(grown / more)} a cycle`,
  );
  return Math.round(grown / more);
}

test(`${CYCLES} cycles on the embedded machine`, { timeout: 180_000 }, async (t) => {
  const guest = await MiniGuest.boot();
  t.after(() => guest.machine.close());
  const grown = await expectNothingLeft(guest.machine, CYCLES);
  t.diagnostic(`the heap grew by ${grown} bytes a cycle`);
  await guest.expectAlive();
});

test(`${CYCLES} cycles on a Debian guest in QEMU`, {
  timeout: 180_000,
  skip: whyNoLinuxGuest() ?? false,
}, async (t) => {
  const vm = await LinuxGuest.boot();
  t.after(() => vm.kill());
  const machine = await openQemu({ qmp: vm.qmp });
  t.after(() => machine.close());
  const grown = await expectNothingLeft(machine, CYCLES);
  t.diagnostic(`the heap grew by ${grown} bytes a cycle`);
  await vm.nextTicks(3);
  assert.equal((await vm.run('echo alive')).trim(), 'alive');
});

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { withProbes } from '../../test/kit/with-probes.ts';
import { deferred } from '../awaitable.ts';
import { createEmbeddedMachine, kernelSymbol, MiniKernel } from '../drivers/embedded/index.ts';
import { introspect } from '../introspect.ts';
import { encodePacket, MAX_PACKET, PacketReader } from '../rsp/packets.ts';
import type { Guest } from '../tool/index.ts';
import { loopback } from '../transport/index.ts';
import { serveGdb } from './index.ts';

/* Clients that are not GDB. */

/** A session without acknowledgements. */
function sessionOf(guest: Guest) {
  const [ours, theirs] = loopback();
  const reader = new PacketReader();
  const replies: string[] = [];
  let wake = deferred<void>();
  let closed = false;
  const over = serveGdb(guest, theirs);
  ours.open({
    data(bytes) {
      for (const each of reader.feed(bytes))
        if (each.kind === 'packet') replies.push(Buffer.from(each.data).toString('latin1'));
      wake.resolve();
    },
    close() {
      closed = true;
      wake.resolve();
    },
  });
  const next = async (): Promise<string | undefined> => {
    while (replies.length === 0) {
      if (closed) return undefined;
      await wake.promise;
      wake = deferred();
    }
    return replies.shift();
  };
  const ask = (packet: string): Promise<string | undefined> => {
    ours.write(encodePacket(Buffer.from(packet, 'latin1')));
    return next();
  };
  return { channel: ours, over, next, ask };
}

describe('hostile clients', { timeout: 60_000 }, () => {
  const machine = createEmbeddedMachine({ vcpus: 1 });
  let hooked: Guest;

  before(async () => {
    new MiniKernel(machine).boot();
    machine.start();
    hooked = await introspect(machine);
  });
  after(async () => {
    await hooked.detach();
    await machine.close();
  });

  const session = () => sessionOf(hooked);

  async function runs(): Promise<void> {
    const hit = deferred<void>();
    const breakpoint = await hooked.breakpoints.set(kernelSymbol('syscall_entry'), () => hit.resolve());
    await hit.promise;
    await breakpoint.remove();
  }

  const REFUSED: readonly (readonly [packet: string, reply: string])[] = [
    ['m', 'E22'],
    ['m0', 'E22'],
    ['mfffffffffffffffff,1', 'E22'],
    ['mffffffffffffffff,2', 'E22'],
    ['m800000000000,10', 'E14'],
    ['M0,2:00', 'E22'],
    ['M0,1:0g', 'E22'],
    ['X0,5:ab', 'E22'],
    ['X800000000000,1:a', 'E14'],
    ['Z0,', 'E22'],
    ['Z2,0,1', ''],
    ['p', 'E22'],
    ['pffff', 'E22'],
    ['P10=00', 'E22'],
    ['P1b=00000000', 'E22'],
    ['Hg7', 'E01'],
    ['Hx1', 'E22'],
    ['Tffffffff', 'E01'],
    ['vCont;', 'E22'],
    ['vCont;c:7', 'E22'],
    ['vCont;r0,1', 'E22'],
    ['qXfer:features:read:target.xml:z,z', 'E22'],
    ['qXfer:features:read:../../etc/passwd:0,10', ''],
    ['!', ''],
    ['\0\xff', ''],
  ];
  test('requests that make no sense are refused, and the session goes on', async () => {
    const { ask, channel, over } = session();
    for (const [packet, reply] of REFUSED) assert.equal(await ask(packet), reply, JSON.stringify(packet));
    assert.match((await ask('?')) ?? '', /^T05thread:1;$/);
    channel.shutdown();
    await over;
    await runs();
  });

  test('a breakpoint where nothing is mapped, and one at the same place of the other type', async () => {
    const { ask, channel, over } = session();
    for (const packet of [
      'Z0,400000000000,1',
      'Z1,400000000000,1',
      'z0,400000000000,1',
      'z1,400000000000,1',
    ]) {
      assert.equal(await ask(packet), 'OK', packet);
    }
    channel.shutdown();
    await over;
    await runs();
  });

  test('thread 0 is any: all continue, the selected one steps', async () => {
    const { ask, next, channel, over } = session();
    const rip = async (): Promise<string | undefined> => ask('p10');
    const entry = kernelSymbol('syscall_entry').toString(16);
    assert.equal(await ask(`Z1,${entry},1`), 'OK');
    assert.equal(await ask('vCont;c:0'), 'T05thread:1;');
    assert.equal(
      Buffer.from((await rip())!, 'hex')
        .readBigUInt64LE()
        .toString(16),
      entry,
    );
    assert.equal(await ask(`z1,${entry},1`), 'OK');
    assert.equal(await ask('vCont;s:0'), 'T05thread:1;');
    const moved = Buffer.from((await rip())!, 'hex').readBigUInt64LE() - kernelSymbol('syscall_entry');
    assert.ok(moved > 0n && moved <= 15n, 'one instruction');
    channel.write(encodePacket(Buffer.from('vCont;c:0')));
    channel.write(Uint8Array.of(3));
    assert.equal(await next(), 'T02thread:1;');
    channel.shutdown();
    await over;
    await runs();
  });

  test('an interrupt stops a guest that runs; requests before it are refused', async () => {
    const { ask, next, channel, over } = session();
    await ask('?');
    channel.write(encodePacket(Buffer.from('c')));
    assert.equal(await ask('g'), 'E01');
    channel.write(Uint8Array.of(3));
    assert.match((await next()) ?? '', /^T02thread:1;$/);
    assert.equal(await ask('D'), 'OK');
    await over;
    await runs();
  });

  test('a packet that is too long ends the session, not the guest', async () => {
    const { channel, next, over } = session();
    channel.write(Buffer.from(`$${'m'.repeat(MAX_PACKET + 1)}`));
    assert.equal(await next(), undefined);
    await over;
    await runs();
  });

  test('more requests than are taken at once are all answered', async () => {
    const { channel, next, over } = session();
    const count = 500;
    for (let i = 0; i < count; i++) channel.write(encodePacket(Buffer.from('qC')));
    for (let i = 0; i < count; i++) assert.equal(await next(), 'QC1');
    channel.shutdown();
    await over;
    await runs();
  });
});

test('where the machine has no probes of its own, hbreak is refused and break is an int3', async () => {
  const machine = createEmbeddedMachine({ vcpus: 1 });
  new MiniKernel(machine).boot();
  machine.start();
  const guest = await introspect(withProbes(machine, undefined));
  const { ask, channel, over } = sessionOf(guest);
  const entry = kernelSymbol('syscall_entry');
  const byte = async (): Promise<number> => (await guest.vcpus[0]!.memory.readBytes(entry, 1))[0]!;
  const original = await byte();
  assert.equal(await ask(`Z1,${entry.toString(16)},1`), 'E01');
  assert.equal(await byte(), original);
  assert.equal(await ask(`Z0,${entry.toString(16)},1`), 'OK');
  assert.equal(await byte(), 0xcc);
  assert.equal(await ask(`m${entry.toString(16)},1`), original.toString(16).padStart(2, '0'));
  assert.equal(await ask('Z0,400000000000,1'), 'E14');
  channel.shutdown();
  await over;
  assert.equal(await byte(), original);
  await guest.detach();
  await machine.close();
});

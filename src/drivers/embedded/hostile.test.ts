import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { BARE, BareGuest } from '../../../test/kit/bare-guest.ts';
import { RecordingHandler } from '../../../test/kit/recording-handler.ts';

/** The same bytes for the same seed. */
function noise(length: number, seed: number): Uint8Array {
  const bytes = new Uint8Array(length);
  let x = seed;
  for (let i = 0; i < length; i++) {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    bytes[i] = x;
  }
  return bytes;
}

/** Handlers that skip a byte and go on: add qword [rsp + offset of rip], 1; iretq. */
function goOnAfterExceptions(guest: BareGuest): void {
  for (let vector = 0; vector < 256; vector++) {
    const code = vector === 8 || (vector >= 10 && vector <= 14) || vector === 17 ? '48 83 c4 08 ' : '';
    guest.write(BARE.handlers + 16 * vector, `${code}48 83 04 24 01 48 cf`);
  }
}

describe('embedded: hostile guests', () => {
  test('random bytes as code: a million instructions, no error in the host', () => {
    const crashes = new Map<string, number>();
    let executed = 0;
    for (let seed = 1; executed < 1_000_000; seed++) {
      const guest = new BareGuest(noise(0x8000, seed * 7919));
      guest.machine.onCrash = ({ reason }) => crashes.set(reason, (crashes.get(reason) ?? 0) + 1);
      goOnAfterExceptions(guest);
      if (seed & 1) guest.enterRing3();
      for (let i = 0; i < 16; i++) guest.cpu.r[2 * i] = (noise(4, seed + i)[0]! << 12) | 0x800;
      guest.cpu.r[8] = BARE.stack;
      let ran: number;
      let here = 0;
      do {
        ran = guest.machine.run(10_000);
        here += ran;
        guest.cpu.attention &= ~64;
        guest.rip = BigInt(BARE.code + (here % 0x7000));
      } while (ran > 0 && here < 50_000);
      executed += Math.max(here, 1000);
    }
    assert.ok(executed >= 1_000_000);
  });

  test('random bytes with every trap armed and random answers', () => {
    for (let seed = 1; seed <= 30; seed++) {
      const guest = new BareGuest(noise(0x2000, seed * 104729));
      goOnAfterExceptions(guest);
      const handler = new RecordingHandler();
      const choices = noise(4096, seed);
      let stops = 0;
      handler.answer = () => {
        const choice = choices[stops++ & 4095]!;
        handler.stops.length = 0;
        if ((choice & 7) === 0) guest.rip = BigInt(BARE.code + (choice << 4));
        return { action: (['continue', 'continue', 'continue', 'retry', 'refuse'] as const)[choice % 5]! };
      };
      guest.machine.attach(handler);
      const vcpu = guest.machine.vcpus[0]!;
      for (const kind of ['breakpoint', 'xsetbv', 'descriptor', 'hypercall', 'cpuid'] as const) {
        guest.machine.arm({ kind, vcpu });
      }
      for (const cr of [0, 3, 4] as const) guest.machine.arm({ kind: 'cr', cr, vcpu });
      if (seed % 3 === 0) guest.machine.arm({ kind: 'singlestep', vcpu });
      for (let gfn = 0; gfn < 64; gfn += 3)
        guest.machine.arm({ kind: 'page', gfn, access: choices[gfn]! & 7, view: 0 });
      for (let i = 0; i < 20; i++) guest.machine.run(500);
      guest.machine.detach();
    }
  });

  test('page tables that map themselves', () => {
    const guest = new BareGuest('48 8b 04 25 00 00 03 00 48 89 04 25 08 00 03 00 eb ee');
    for (let i = 0; i < 512; i++)
      guest.machine.memory.data.setBigUint64(BARE.pml4 + 8 * i, BigInt(BARE.pml4) | 7n, true);
    guest.machine.views.flush();
    guest.machine.run(10_000);
  });

  test('a loop of faults takes no more time than instructions', () => {
    const guest = new BareGuest('0f 0b');
    for (let vector = 0; vector < 32; vector++) guest.write(BARE.handlers + 16 * vector, '48 cf');
    assert.equal(guest.machine.run(20_000), 20_000);
  });

  test('a stack that runs into nothing ends the vCPU, not the host', () => {
    const guest = new BareGuest('50 eb fd'); // push rax, for ever
    guest.cpu.setSystemFlags(0);
    guest.set('rsp', 0x200000n);
    guest.machine.run(1_000_000);
  });
});

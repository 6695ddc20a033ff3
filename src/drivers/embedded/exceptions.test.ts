import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { BARE, BareGuest, SELECTOR } from '../../../test/kit/bare-guest.ts';
import { FLAG } from './cpu/constants.ts';
import { getFlags, setFlags } from './cpu/flags.ts';

/** Quadwords of the stack, from rsp up. */
function stackOf(guest: BareGuest, count: number): bigint[] {
  const at = Number(guest.get('rsp'));
  return Array.from({ length: count }, (_, i) => guest.machine.memory.data.getBigUint64(at + 8 * i, true));
}

const idtEntry = (vector: number) => BARE.idt + 16 * vector;

describe('embedded: exceptions', () => {
  test('an exception pushes rip, cs, rflags, rsp and ss, and enters its handler', () => {
    const guest = new BareGuest('0f 0b'); // ud2
    guest.machine.run(5);
    assert.equal(guest.vector, 6);
    assert.deepEqual(stackOf(guest, 5), [
      BigInt(BARE.code),
      BigInt(SELECTOR.kernelCode),
      2n,
      BigInt(BARE.stack),
      BigInt(SELECTOR.kernelData),
    ]);
  });

  test('an error code is pushed where the exception has one', () => {
    const guest = new BareGuest('48 b8 00 00 00 00 00 00 01 00 48 8b 18'); // a non-canonical read
    guest.machine.run(5);
    assert.equal(guest.vector, 13);
    assert.deepEqual(stackOf(guest, 2), [0n, BigInt(BARE.code + 10)]);
  });

  test('the stack of a handler is aligned to 16 bytes', () => {
    const guest = new BareGuest('0f 0b');
    guest.set('rsp', BigInt(BARE.stack - 5));
    guest.machine.run(5);
    assert.equal(guest.get('rsp') % 16n, 8n);
    assert.equal(stackOf(guest, 5)[3], BigInt(BARE.stack - 5));
  });

  test('from ring 3 the handler runs on rsp0 with a null ss', () => {
    const guest = new BareGuest('0f 0b');
    guest.enterRing3();
    guest.machine.run(5);
    assert.equal(guest.cpu.cpl, 0);
    assert.equal(guest.get('rsp'), BigInt(BARE.kernelStack - 40));
    assert.deepEqual(stackOf(guest, 5), [
      BigInt(BARE.code),
      BigInt(SELECTOR.userCode),
      2n,
      BigInt(BARE.stack),
      BigInt(SELECTOR.userData),
    ]);
  });

  test('an IST entry switches the stack in any ring', () => {
    const guest = new BareGuest('0f 0b');
    guest.machine.memory.data.setUint8(idtEntry(6) + 4, 1);
    guest.machine.run(5);
    assert.equal(guest.get('rsp'), BigInt(BARE.kernelStack - 0x1000 - 40));
  });

  test('int3 leaves rip behind itself and may come from ring 3', () => {
    const guest = new BareGuest('cc f4');
    guest.enterRing3();
    guest.machine.run(5);
    assert.equal(guest.vector, 3);
    assert.equal(stackOf(guest, 1)[0], BigInt(BARE.code + 1));
  });

  test('int n from ring 3 needs a gate with DPL 3', () => {
    const guest = new BareGuest('cd 80');
    guest.enterRing3();
    guest.machine.run(5);
    assert.equal(guest.vector, 13);
    assert.equal(stackOf(guest, 1)[0], BigInt(0x80 * 8 + 2));
  });

  test('an interrupt gate clears IF, a trap gate does not', () => {
    for (const [type, expected] of [
      [0x8e, 0],
      [0x8f, FLAG.IF],
    ] as const) {
      const guest = new BareGuest('0f 0b');
      guest.machine.memory.data.setUint8(idtEntry(6) + 5, type);
      setFlags(guest.cpu, FLAG.IF);
      guest.machine.run(5);
      assert.equal(getFlags(guest.cpu) & FLAG.IF, expected);
    }
  });

  test('an absent gate makes #NP, and two contributory exceptions a double fault', () => {
    const absent = new BareGuest('0f 0b');
    absent.machine.memory.data.setUint8(idtEntry(6) + 5, 0x0e);
    absent.machine.run(5);
    assert.equal(absent.vector, 11);
    const both = new BareGuest('48 b8 00 00 00 00 00 00 01 00 48 8b 18');
    both.machine.memory.data.setUint8(idtEntry(13) + 5, 0x0e);
    both.machine.run(5);
    assert.equal(both.vector, 8);
    assert.equal(stackOf(both, 1)[0], 0n);
  });

  test('a double fault that cannot be delivered ends the vCPU', () => {
    const guest = new BareGuest('0f 0b');
    const crashes: string[] = [];
    guest.machine.onCrash = ({ vcpu, reason }) => crashes.push(`${vcpu.index}: ${reason}`);
    guest.cpu.idtr.set(0, 0, 0);
    guest.machine.run(50);
    assert.deepEqual(crashes, ['0: triple fault']);
    assert.equal(guest.machine.run(50), 0);
  });

  test('a fault leaves registers and flags as they were', () => {
    const guest = new BareGuest('48 03 04 25 00 00 03 00'); // add rax, [0x30000]
    guest.set('rax', 7n);
    setFlags(guest.cpu, FLAG.CF | FLAG.OF);
    guest.page(BARE.data, 0n, 1n);
    guest.machine.run(5);
    assert.equal(guest.vector, 14);
    assert.equal(guest.get('rax'), 7n);
    assert.equal(getFlags(guest.cpu) & (FLAG.CF | FLAG.OF), FLAG.CF | FLAG.OF);
  });

  test('a read-modify-write of a read-only page changes no flags', () => {
    const guest = new BareGuest('48 83 04 25 00 00 03 00 01'); // add qword [0x30000], 1
    guest.page(BARE.data, 0n, 2n);
    setFlags(guest.cpu, FLAG.CF | FLAG.ZF);
    guest.machine.run(5);
    assert.equal(guest.vector, 14);
    assert.equal(Number(stackOf(guest, 4)[3]) & (FLAG.CF | FLAG.ZF), FLAG.CF | FLAG.ZF);
  });

  test('a push to a missing page does not move rsp', () => {
    const guest = new BareGuest('50'); // push rax
    guest.set('rsp', 0x41000n);
    guest.page(0x40000, 0n, 1n);
    guest.machine.memory.data.setUint8(idtEntry(14) + 4, 1);
    guest.machine.run(5);
    assert.equal(guest.vector, 14);
    assert.equal(stackOf(guest, 5)[4], 0x41000n);
  });

  test('TF raises #DB after each instruction and says so in DR6', () => {
    const guest = new BareGuest('48 ff c0 48 ff c0'); // inc rax, twice
    setFlags(guest.cpu, FLAG.TF);
    guest.machine.run(4);
    assert.equal(guest.vector, 1);
    assert.equal(guest.get('rax'), 1n);
    assert.equal(guest.cpu.dr[12]! & 0x4000, 0x4000);
    assert.equal(stackOf(guest, 1)[0], BigInt(BARE.code + 3));
  });

  test('iretq goes to ring 3 and back with everything restored', () => {
    const guest = new BareGuest('48 cf'); // iretq
    const frame = [0x11000n, BigInt(SELECTOR.userCode), 0x202n, 0x25000n, BigInt(SELECTOR.userData)];
    const rsp = BARE.stack - 40;
    frame.forEach((value, i) => {
      guest.machine.memory.data.setBigUint64(rsp + 8 * i, value, true);
    });
    guest.set('rsp', BigInt(rsp));
    guest.write(0x11000, '90');
    guest.machine.run(2);
    assert.equal(guest.cpu.cpl, 3);
    assert.equal(guest.rip, 0x11001n);
    assert.equal(guest.get('rsp'), 0x25000n);
    assert.equal(getFlags(guest.cpu) & FLAG.IF, FLAG.IF);
  });

  test('iretq to a bad selector raises #GP with it', () => {
    const guest = new BareGuest('48 cf');
    const rsp = BARE.stack - 40;
    [0x11000n, 0x70n, 2n, 0n, 0n].forEach((value, i) => {
      guest.machine.memory.data.setBigUint64(rsp + 8 * i, value, true);
    });
    guest.set('rsp', BigInt(rsp));
    guest.machine.run(5);
    assert.equal(guest.vector, 13);
    assert.equal(stackOf(guest, 1)[0], 0x70n);
  });

  test('syscall and sysret go to the kernel and back', () => {
    const guest = new BareGuest('0f 05 90'); // syscall; nop
    const { cpu } = guest;
    cpu.msrs.set(0xc0000081, (0x10n << 48n) | (0x08n << 32n));
    cpu.msrs.set(0xc0000082, 0x11000n);
    cpu.msrs.set(0xc0000084, BigInt(FLAG.IF | FLAG.CF));
    guest.write(0x11000, '48 0f 07'); // sysretq
    guest.enterRing3();
    setFlags(cpu, FLAG.IF | FLAG.CF | FLAG.ZF);
    guest.machine.run(1);
    assert.equal(cpu.cpl, 0);
    assert.equal(guest.rip, 0x11000n);
    assert.equal(guest.get('rcx'), BigInt(BARE.code + 2));
    assert.equal(Number(guest.get('r11')), FLAG.IF | FLAG.CF | FLAG.ZF | 2);
    assert.equal(getFlags(cpu) & (FLAG.IF | FLAG.CF | FLAG.ZF), FLAG.ZF);
    guest.machine.run(2);
    assert.equal(cpu.cpl, 3);
    assert.equal(cpu.segments[1]!.selector, SELECTOR.userCode);
    assert.equal(guest.rip, BigInt(BARE.code + 3));
    assert.equal(getFlags(cpu) & (FLAG.IF | FLAG.CF | FLAG.ZF), FLAG.IF | FLAG.CF | FLAG.ZF);
  });

  test('privileged instructions raise #GP in ring 3', () => {
    for (const code of [
      'f4',
      '0f 30',
      '0f 32',
      '0f 22 d8',
      '0f 20 d8',
      '0f 01 14 25 00 00 03 00',
      'fa',
      'ee',
    ]) {
      const guest = new BareGuest(code);
      guest.enterRing3();
      guest.machine.run(3);
      assert.equal(guest.vector, 13, code);
    }
  });

  test('what is not an instruction raises #UD', () => {
    for (const code of ['06', 'd6', '0f ff', 'f0 90', '0f 04', 'c5 f8 77', '0f 38 00 c0', 'ff ff']) {
      const guest = new BareGuest(code);
      guest.machine.run(3);
      assert.equal(guest.vector, 6, code);
    }
  });

  test('an instruction of more than 15 bytes raises an exception', () => {
    const guest = new BareGuest(`${'66 '.repeat(15)}90`);
    guest.machine.run(3);
    assert.ok(guest.vector === 6 || guest.vector === 13, String(guest.vector));
  });

  test('an interrupt waits for IF, and one more instruction after STI', () => {
    const guest = new BareGuest('48 ff c0  fb  48 ff c0  48 ff c0'); // inc; sti; inc; inc
    guest.machine.interrupt(0x40);
    guest.machine.run(10);
    assert.equal(guest.vector, 0x40);
    assert.equal(guest.get('rax'), 2n);
  });

  test('an interrupt ends HLT', () => {
    const guest = new BareGuest('fb f4 48 ff c0 f4'); // sti; hlt; inc rax; hlt
    assert.equal(guest.machine.run(10), 2);
    assert.equal(guest.machine.run(10), 0);
    guest.machine.interrupt(0x40);
    guest.machine.run(10);
    assert.equal(guest.vector, 0x40);
    assert.equal(stackOf(guest, 1)[0], BigInt(BARE.code + 2));
  });
});

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { BARE, BareGuest, type RegisterName } from '../../../test/kit/bare-guest.ts';
import { FLAG } from './cpu/constants.ts';
import { getFlags, setFlags } from './cpu/flags.ts';

/** Runs code to its HLT. */
function run(code: string, registers: Partial<Record<RegisterName, bigint>> = {}, flags = 2): BareGuest {
  const guest = new BareGuest(code);
  for (const [name, value] of Object.entries(registers)) guest.set(name as RegisterName, value);
  setFlags(guest.cpu, flags);
  guest.machine.run(10_000);
  return guest;
}

describe('embedded: instructions that the comparison with another processor leaves out', () => {
  test('popcnt', () => {
    const guest = run('f3 48 0f b8 c3 f4', { rbx: 0xf0f0_0000_0000_0001n });
    assert.equal(guest.get('rax'), 9n);
    assert.equal(getFlags(guest.cpu) & FLAG.ZF, 0);
    assert.equal(getFlags(run('f3 48 0f b8 c3 f4').cpu) & FLAG.ZF, FLAG.ZF);
  });

  test('a cmpxchg that fails does not touch its 32-bit destination', () => {
    const guest = run('0f b1 d1 f4', { rax: 1n, rcx: 0xffff_ffff_0000_0002n, rdx: 3n }); // cmpxchg ecx, edx
    assert.equal(guest.get('rcx'), 0xffff_ffff_0000_0002n);
    assert.equal(guest.get('rax'), 2n);
  });

  test('cmpxchg16b', () => {
    const code = '48 0f c7 0c 25 00 00 03 00 f4';
    const guest = new BareGuest(code);
    guest.machine.memory.data.setBigUint64(BARE.data, 1n, true);
    guest.machine.memory.data.setBigUint64(BARE.data + 8, 2n, true);
    for (const [name, value] of [
      ['rax', 1n],
      ['rdx', 2n],
      ['rbx', 3n],
      ['rcx', 4n],
    ] as const)
      guest.set(name, value);
    guest.machine.run(10);
    assert.deepEqual(
      [0, 8].map((at) => guest.machine.memory.data.getBigUint64(BARE.data + at, true)),
      [3n, 4n],
    );
    assert.equal(getFlags(guest.cpu) & FLAG.ZF, FLAG.ZF);
  });

  test('every condition of Jcc', () => {
    const flagsOf = [FLAG.OF, FLAG.CF, FLAG.ZF, FLAG.CF, FLAG.SF, FLAG.PF, FLAG.SF, FLAG.ZF];
    for (let condition = 0; condition < 16; condition++) {
      const code = `${(0x70 + condition).toString(16)} 03 31 c0 f4 b8 01 00 00 00 f4`; // jcc +3; xor eax, eax; hlt
      const met = run(code, { rax: 5n }, flagsOf[condition >> 1]! | 2).get('rax') === 1n;
      const unmet = run(code, { rax: 5n }, 2).get('rax') === 1n;
      assert.deepEqual([met, unmet], condition & 1 ? [false, true] : [true, false], `condition ${condition}`);
    }
  });

  test('call, ret and ret n', () => {
    // push 7; call +2; hlt; nop; inc rax; ret 8
    const guest = run('6a 07 e8 02 00 00 00 f4 90 48 ff c0 c2 08 00');
    assert.equal(guest.get('rax'), 1n);
    assert.equal(guest.get('rsp'), BigInt(BARE.stack));
  });

  test('loop, loope and jrcxz', () => {
    assert.equal(run('48 ff c0 e2 fb f4', { rcx: 10n }).get('rax'), 10n);
    assert.equal(run('48 ff c0 e1 fb f4', { rcx: 10n }).get('rax'), 1n);
    assert.equal(run('e3 03 48 ff c0 f4', { rcx: 0n }).get('rax'), 0n);
  });

  test('a long REP fills memory and stops where it should', () => {
    const guest = run('bf 00 00 03 00 b9 34 12 00 00 b0 aa f3 aa f4'); // 0x1234 bytes of 0xaa
    const { bytes } = guest.machine.memory;
    assert.deepEqual(
      [bytes[BARE.data], bytes[BARE.data + 0x1233], bytes[BARE.data + 0x1234]],
      [0xaa, 0xaa, 0],
    );
    assert.deepEqual([guest.get('rcx'), guest.get('rdi')], [0n, BigInt(BARE.data + 0x1234)]);
  });

  test('overlapping copies repeat what was written, backwards ones do not', () => {
    const guest = new BareGuest('be 00 00 03 00 bf 01 00 03 00 b9 00 02 00 00 f3 a4 f4');
    guest.write(BARE.data, '55');
    guest.machine.run(2000);
    assert.ok(
      guest.machine.memory.bytes.subarray(BARE.data, BARE.data + 0x201).every((byte) => byte === 0x55),
    );
  });

  test('an address of 32 bits wraps', () => {
    const guest = new BareGuest('67 48 8b 03 f4'); // mov rax, [ebx]
    guest.set('rbx', 0xffff_ffff_0003_0000n);
    guest.machine.memory.data.setUint32(BARE.data, 77, true);
    guest.machine.run(5);
    assert.equal(guest.get('rax'), 77n);
  });

  test('fs and gs have bases', () => {
    const guest = new BareGuest('65 48 8b 04 25 08 00 00 00 64 48 8b 1c 25 10 00 00 00 f4');
    guest.cpu.msrs.set(0xc0000101, BigInt(BARE.data));
    guest.cpu.msrs.set(0xc0000100, BigInt(BARE.data));
    guest.machine.memory.data.setUint32(BARE.data + 8, 1, true);
    guest.machine.memory.data.setUint32(BARE.data + 16, 2, true);
    guest.machine.run(5);
    assert.deepEqual([guest.get('rax'), guest.get('rbx')], [1n, 2n]);
  });

  test('the serial port and ports without a device', () => {
    const guest = run('b0 41 66 ba f8 03 ee ec 66 ba fd 03 ec 88 c3 66 ba 00 10 ed f4'); // out; in lsr; in 0x1000
    assert.equal(guest.machine.serial.text, 'A');
    assert.equal(guest.get('rbx') & 0x20n, 0x20n);
    assert.equal(guest.get('rax'), 0xffff_ffffn);
  });

  test('xsave and xrstor keep a state', () => {
    // mov eax, 3; movq xmm0, rbx; xsave [0x30000]; pxor xmm0, xmm0; xrstor [0x30000]; movq rcx, xmm0
    const guest = new BareGuest(
      'b8 03 00 00 00 66 48 0f 6e c3 0f ae 24 25 00 00 03 00 66 0f ef c0 0f ae 2c 25 00 00 03 00 66 48 0f 7e c1 f4',
    );
    guest.cpu.xcr0 = 3;
    guest.set('rbx', 0x1234_5678_9abc_def0n);
    guest.machine.run(10);
    assert.equal(guest.get('rcx'), 0x1234_5678_9abc_def0n);
  });

  test('rdtsc moves with guest time', () => {
    const guest = new BareGuest('0f 31 89 c3 0f 31 29 d8 f4');
    guest.machine.step();
    guest.machine.run(0);
    guest.machine.clock.ran(100);
    guest.machine.run(10);
    assert.ok(guest.get('rax') >= 2000n);
  });
});

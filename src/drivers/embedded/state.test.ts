import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { BARE, BareGuest, SELECTOR } from '../../../test/kit/bare-guest.ts';
import { decodeState, regsOf, STATE_SIZE } from '../../abi/index.ts';

function stateOf(guest: BareGuest) {
  const block = new Uint8Array(STATE_SIZE);
  guest.machine.vcpus[0]!.readState(block);
  return decodeState(block);
}

describe('embedded: vCPU state', () => {
  test('general registers, rip and rflags', () => {
    const guest = new BareGuest('90');
    guest.set('rax', 0x1122334455667788n);
    guest.set('rbx', 2n);
    guest.set('r15', 0xffff_ffff_ffff_fff0n);
    const { regs, mode } = stateOf(guest);
    assert.equal(mode, 8);
    assert.deepEqual(
      [regs.rax, regs.rbx, regs.r15, regs.rip, regs.rflags, regs.rsp],
      [0x1122334455667788n, 2n, 0xffff_ffff_ffff_fff0n, BigInt(BARE.code), 2n, BigInt(BARE.stack)],
    );
  });

  test('segments, tables and control registers', () => {
    const guest = new BareGuest('90');
    guest.cpu.cr2Lo = 0x1234;
    const { sregs } = stateOf(guest);
    assert.deepEqual(
      { ...sregs.cs },
      {
        base: 0n,
        limit: 0xffff_ffff,
        selector: SELECTOR.kernelCode,
        type: 11,
        present: 1,
        dpl: 0,
        db: 0,
        s: 1,
        l: 1,
        g: 1,
        avl: 0,
        unusable: 0,
      },
    );
    assert.equal(sregs.fs.selector, 16);
    assert.equal(sregs.tr.base, BigInt(BARE.tss));
    assert.equal(sregs.ldt.unusable, 1);
    assert.deepEqual([sregs.gdt.base, sregs.gdt.limit, sregs.idt.limit], [BigInt(BARE.gdt), 0x37, 0xfff]);
    assert.deepEqual([sregs.cr2, sregs.cr3, sregs.efer], [0x1234n, BigInt(BARE.pml4), 0xd01n]);
  });

  test('what changes is seen: a segment, a base, an MSR, cr3', () => {
    // mov ds, 0x10; wrmsr GS_BASE = 0x5000; mov cr3, cr3 | 8
    const guest = new BareGuest(
      'b8 10 00 00 00 8e d8 b9 01 01 00 c0 b8 00 50 00 00 31 d2 0f 30 0f 20 d8 48 83 c8 08 0f 22 d8 f4',
    );
    guest.cpu.segments[3]!.setNull(0, 0);
    assert.equal(stateOf(guest).sregs.ds.present, 0);
    guest.machine.run(20);
    const { sregs } = stateOf(guest);
    assert.deepEqual([sregs.ds.present, sregs.gs.base, sregs.cr3], [1, 0x5000n, BigInt(BARE.pml4 | 8)]);
  });

  test('MSRs of the state block', () => {
    const guest = new BareGuest('90');
    guest.cpu.msrs.set(0xc0000082, 0xffff_ffff_8100_0000n);
    guest.cpu.msrs.set(0xc0000102, 0x7000n);
    guest.cpu.msrs.set(0x176, 0x1234n);
    const { msrs } = stateOf(guest);
    assert.deepEqual(
      [msrs.lstar, msrs.shadow_gs, msrs.sysenter_eip, msrs.pat, msrs.efer],
      [0xffff_ffff_8100_0000n, 0x7000n, 0x1234n, 0x0007_0406_0007_0406n, 0xd01n],
    );
  });

  test('registers written are the guest’s', () => {
    const guest = new BareGuest('48 01 d8 f4'); // add rax, rbx
    const vcpu = guest.machine.vcpus[0]!;
    const block = new Uint8Array(STATE_SIZE);
    vcpu.readState(block);
    const regs = regsOf(block).slice();
    const data = new DataView(regs.buffer);
    data.setBigUint64(0, 40n, true);
    data.setBigUint64(8, 2n, true);
    data.setBigUint64(136, 0x203n, true);
    vcpu.writeRegisters(regs);
    assert.equal(stateOf(guest).regs.rflags, 0x203n);
    guest.machine.run(2);
    assert.equal(guest.get('rax'), 42n);
    assert.throws(() => vcpu.writeRegisters(new Uint8Array(10)), { code: 'E_ARGUMENT' });
  });

  test('MSRs that exist, and those that do not', () => {
    const vcpu = new BareGuest('90').machine.vcpus[0]!;
    assert.equal(vcpu.readMsr(0xc0000080), 0xd01n);
    assert.equal(vcpu.readMsr(0x140), 0n);
    assert.equal(vcpu.readMsr(0xffffffff), undefined);
  });

  test('CPUID leaves that exist, and those that do not', () => {
    const vcpu = new BareGuest('90').machine.vcpus[0]!;
    const leaf = vcpu.cpuid(0, 0)!;
    const vendor = Buffer.alloc(12);
    vendor.writeUInt32LE(leaf.ebx, 0);
    vendor.writeUInt32LE(leaf.edx, 4);
    vendor.writeUInt32LE(leaf.ecx, 8);
    assert.equal(vendor.toString(), 'GenuineIntel');
    assert.equal(vcpu.cpuid(0xd, 2)!.ebx, 576);
    assert.equal(vcpu.cpuid(0x1234, 0), undefined);
  });

  test('the XSAVE area has what instructions put into vector registers, and can be written', () => {
    // movq xmm0, rax; movq xmm1, rbx; pxor xmm0, xmm1; movdqu [0x30000], xmm0
    const guest = new BareGuest('66 48 0f 6e c0 66 48 0f 6e cb 66 0f ef c1 f3 0f 7f 04 25 00 00 03 00 f4');
    const vcpu = guest.machine.vcpus[0]!;
    guest.set('rax', 0xff00n);
    guest.set('rbx', 0x0ff0n);
    guest.machine.run(10);
    const area = new Uint8Array(4096);
    vcpu.readXsave(area);
    assert.equal(new DataView(area.buffer).getBigUint64(160, true), 0xf0f0n);
    assert.equal(guest.machine.memory.data.getBigUint64(BARE.data, true), 0xf0f0n);
    area[160] = 1;
    assert.equal(vcpu.writeXsave(area), true);
    assert.equal(guest.cpu.xsave[160], 1);
  });

  test('an XSAVE area with reserved bits is refused', () => {
    const vcpu = new BareGuest('90').machine.vcpus[0]!;
    for (const at of [27, 513, 520]) {
      const area = new Uint8Array(4096);
      vcpu.readXsave(area);
      area[at] = 0xff;
      assert.equal(vcpu.writeXsave(area), false, `byte ${at}`);
    }
    assert.equal(vcpu.writeXsave(new Uint8Array(100)), false);
  });

  test('memory types follow the MTRRs', () => {
    const guest = new BareGuest('90');
    const vcpu = guest.machine.vcpus[0]!;
    assert.equal(vcpu.mtrrType(0x100000), 6);
    guest.cpu.msrs.set(0x200, 0x100000n); // uncacheable from 1 MiB, 1 MiB long
    guest.cpu.msrs.set(0x201, 0xff_fff0_0800n);
    assert.equal(vcpu.mtrrType(0x180000), 0);
    assert.equal(vcpu.mtrrType(0x200000), 6);
    guest.cpu.msrs.set(0x259, 0x0101_0101_0101_0101n);
    assert.equal(vcpu.mtrrType(0xa1000), 1);
  });

  test('xcr0 and the TSC frequency', () => {
    const vcpu = new BareGuest('90').machine.vcpus[0]!;
    assert.equal(vcpu.xcr0(), 1n);
    assert.equal(vcpu.tscHz, 1e9);
  });
});

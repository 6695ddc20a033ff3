import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { decodeState, STATE_SIZE } from '../../abi/state.ts';
import { APIC_LAYOUT, COMMON_LAYOUT, CPU_LAYOUT, CPU_SUBSECTIONS, type Layout } from './cpu-layout.ts';
import { parseDeviceState } from './device-state.ts';
import { SavedCpu } from './saved-cpu.ts';

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value >>> 0);
  return bytes;
}

/** The bytes of a layout with some fields set. */
function fill(layout: Layout, values: Readonly<Record<string, bigint>>): Buffer {
  const bytes = Buffer.alloc(layout.size);
  for (const [name, value] of Object.entries(values)) {
    const [field, index = '0'] = name.split('#');
    const { offset, size } = layout.fields.get(field!)!;
    for (let i = 0; i < size; i++) {
      bytes[offset + Number(index) * size + size - 1 - i] = Number((value >> BigInt(8 * i)) & 0xffn);
    }
  }
  return bytes;
}

let nextSection = 1;
function section(name: string, instance: number, version: number, ...content: Buffer[]): Buffer {
  const header = [Buffer.of(4), u32(nextSection++), Buffer.of(name.length), Buffer.from(name)];
  return Buffer.concat([...header, u32(instance), u32(version), ...content, Buffer.of(0x7e), u32(0)]);
}

function subsection(name: string, content: Buffer): Buffer {
  return Buffer.concat([Buffer.of(5, name.length), Buffer.from(name), u32(1), content]);
}

const CPU = {
  rax: 0x1122334455667788n,
  rip: 0xffffffff81000000n,
  rflags: 0x246n,
  'cs.selector': 0x10n,
  'cs.limit': 0xffffffffn,
  'cs.flags': 0xaf9b00n,
  'gs.base': 0xffff888000000000n,
  'idt.base': 0xfffffe0000000000n,
  'idt.limit': 0xfffn,
  cr3: 0x1234000n,
  efer: 0xd01n,
  lstar: 0xffffffff82000080n,
  mxcsr: 0x1f80n,
  'xmm#3': 0x00112233445566778899aabbccddeeffn,
  interrupt_injected: 0xffffffffn,
  fsw: 0x3800n,
  'st7.mantissa': 0xdeadn,
  xcr0: 7n,
};

function file(...sections: Buffer[]): Buffer {
  return Buffer.concat([Buffer.from('QEVM'), u32(3), ...sections, Buffer.of(0)]);
}

function twoCpus(): Buffer {
  const cpu = (instance: number) =>
    section(
      'cpu',
      instance,
      12,
      fill(CPU_LAYOUT, { ...CPU, rbx: BigInt(instance) }),
      subsection('cpu/xss', fill(CPU_SUBSECTIONS.get('cpu/xss')!, { xss: 0x100n })),
      subsection('cpu/unheard_of', Buffer.alloc(3)),
    );
  const apic = (instance: number) =>
    section(
      'apic',
      instance,
      3,
      fill(APIC_LAYOUT, { apicbase: 0xfee00900n, id: BigInt(instance), tpr: 0x20n }),
    );
  const common = (instance: number) =>
    section('cpu_common', instance, 1, fill(COMMON_LAYOUT, { halted: 1n }));
  // Sections of other devices may hold what looks like a name.
  const decoy = section('fw_cfg', 0, 2, Buffer.from('\x03cpu\0\0\0\0\0\0\0\x0c', 'latin1'));
  return file(common(0), cpu(0), apic(0), decoy, common(1), cpu(1), apic(1));
}

describe("QEMU's device state", () => {
  test('gives each vCPU its state', () => {
    const states = parseDeviceState(twoCpus(), 2).map((sections) => new SavedCpu(sections, true));
    const block = new Uint8Array(STATE_SIZE);
    states[1]!.writeBlock(block);
    const { mode, regs, sregs, msrs } = decodeState(block);
    assert.equal(mode, 8);
    assert.equal(regs.rax, CPU.rax);
    assert.equal(regs.rbx, 1n);
    assert.equal(regs.rip, CPU.rip);
    assert.deepEqual(sregs.cs, {
      ...{ base: 0n, limit: 0xffffffff, selector: 0x10, type: 11, present: 1, dpl: 0 },
      ...{ db: 0, s: 1, l: 1, g: 1, avl: 0, unusable: 0 },
    });
    assert.equal(sregs.ds.unusable, 1);
    assert.deepEqual(sregs.idt, { base: CPU['idt.base'], limit: 0xfff });
    assert.equal(sregs.cr8, 2n);
    assert.equal(sregs.apic_base, 0xfee00900n);
    assert.deepEqual(sregs.interrupt_bitmap, [0n, 0n, 0n, 0n]);
    assert.equal(msrs.lstar, CPU.lstar);
    assert.equal(states[0]!.halted, true);
    assert.equal(states[0]!.started, true);
    assert.equal(states[0]!.msr(0xda0), 0x100n, 'a subsection');
    assert.equal(states[0]!.msr(0x1a0), 1n, 'the default of a subsection that is left out');
    assert.equal(states[0]!.msr(0x12345), undefined);
  });

  test('gives XSAVE in the standard format', () => {
    const [state] = parseDeviceState(twoCpus(), 2).map((sections) => new SavedCpu(sections, true));
    const area = Buffer.alloc(4096, 0xff);
    state!.writeXsave(area);
    assert.equal(area.readUInt32LE(24), 0x1f80);
    assert.equal(area.readBigUInt64LE(32), 0xdeadn, 'ST(0) is register 7 when the top is 7');
    // QEMU stores the lower half of a vector register first.
    assert.equal(area.readBigUInt64LE(160 + 3 * 16), 0x0011223344556677n);
    assert.equal(area.readBigUInt64LE(512), 7n, 'x87, SSE and AVX');
    assert.equal(area.readBigUInt64LE(2048), 0n);
  });

  test('that is cut, of another version, or rubbish, is refused', () => {
    const whole = twoCpus();
    const refused = (bytes: Buffer, vcpus = 2) =>
      assert.throws(() => parseDeviceState(bytes, vcpus), { code: 'E_QEMU_STATE' });
    refused(whole, 3);
    refused(whole, 1);
    refused(Buffer.alloc(0));
    refused(file(section('cpu', 0, 13, fill(CPU_LAYOUT, CPU))), 1);
    refused(whole.subarray(0, 300));
    fc.assert(
      fc.property(fc.nat(whole.length - 1), fc.nat(255), (at, byte) => {
        const damaged = Buffer.from(whole);
        damaged[at] = byte;
        try {
          for (const sections of parseDeviceState(damaged, 2)) {
            const state = new SavedCpu(sections, true);
            state.writeBlock(new Uint8Array(STATE_SIZE));
            state.writeXsave(new Uint8Array(4096));
            state.mtrrType(0x1000);
          }
        } catch (error) {
          assert.equal((error as { code?: string }).code, 'E_QEMU_STATE');
        }
      }),
    );
  });
});

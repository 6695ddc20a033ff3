import { putU16, putU32, putU64 } from '../../abi/bytes.ts';
import {
  EVENT_MSRS,
  kvmRegs,
  kvmSegment,
  kvmSregs,
  MSRS_OFFSET,
  REGS_OFFSET,
  SREGS_OFFSET,
  STATE_SIZE,
  vcpuState,
} from '../../abi/index.ts';
import { readCr } from './cpu/control.ts';
import type { Cpu } from './cpu/cpu.ts';
import { getFlags, setFlags } from './cpu/flags.ts';
import type { Segment, TableRegister } from './cpu/segment.ts';
import { CS, DS, ES, FS, GS, LDTR, SEGMENT_BASE, SS, TR } from './cpu/slots.ts';

/** Registers of struct kvm_regs in its order, as indices into Cpu.r. */
const KVM_ORDER = [0, 6, 2, 4, 12, 14, 8, 10, 16, 18, 20, 22, 24, 26, 28, 30];
const RIP = kvmRegs.offsetOf('rip');
const RFLAGS = kvmRegs.offsetOf('rflags');
/** Where kvm_regs begins in the block, in words of 32 bits. */
const REGS_WORD = REGS_OFFSET / 4;
const CR2 = SREGS_OFFSET + kvmSregs.offsetOf('cr2');
const VIEW = vcpuState.offsetOf('view');

const SEGMENTS = [
  ['cs', CS],
  ['ds', DS],
  ['es', ES],
  ['fs', FS],
  ['gs', GS],
  ['ss', SS],
  ['tr', TR],
  ['ldt', LDTR],
] as const;

const segmentField = {
  limit: kvmSegment.offsetOf('limit'),
  selector: kvmSegment.offsetOf('selector'),
  type: kvmSegment.offsetOf('type'),
  present: kvmSegment.offsetOf('present'),
  dpl: kvmSegment.offsetOf('dpl'),
  db: kvmSegment.offsetOf('db'),
  s: kvmSegment.offsetOf('s'),
  l: kvmSegment.offsetOf('l'),
  g: kvmSegment.offsetOf('g'),
  avl: kvmSegment.offsetOf('avl'),
  unusable: kvmSegment.offsetOf('unusable'),
} as const;

function putHalves(into: Uint8Array, at: number, lo: number, hi: number): void {
  putU32(into, at, lo);
  putU32(into, at + 4, hi);
}

/**
 * The state block of one vCPU (abi: `vcpuState`). System registers change rarely, so their part is kept and made
 * again only when the processor says that something changed.
 */
export class StateBlock {
  readonly #cpu: Cpu;
  readonly #block = new Uint8Array(STATE_SIZE);
  readonly #words = new Int32Array(this.#block.buffer);
  #epoch = -1;

  constructor(cpu: Cpu) {
    this.#cpu = cpu;
  }

  /** Fills `into`, 536 bytes. */
  read(into: Uint8Array): void {
    const c = this.#cpu;
    if (this.#epoch !== c.systemEpoch) {
      this.#updateSystem();
      this.#epoch = c.systemEpoch;
    }
    putU16(this.#block, VIEW, c.view.number);
    const { r } = c;
    const words = this.#words;
    for (let i = 0; i < 16; i++) {
      const slot = KVM_ORDER[i]!;
      words[REGS_WORD + 2 * i] = r[slot]!;
      words[REGS_WORD + 2 * i + 1] = r[slot + 1]!;
    }
    words[REGS_WORD + RIP / 4] = c.ripLo;
    words[REGS_WORD + RIP / 4 + 1] = c.ripHi;
    words[REGS_WORD + RFLAGS / 4] = getFlags(c);
    into.set(this.#block);
  }

  /** Sets the general registers, rip and rflags from struct kvm_regs. */
  writeRegisters(regs: Uint8Array): void {
    const c = this.#cpu;
    const data = new DataView(regs.buffer, regs.byteOffset, regs.byteLength);
    for (let i = 0; i < 16; i++) {
      const slot = KVM_ORDER[i]!;
      c.r[slot] = data.getInt32(8 * i, true);
      c.r[slot + 1] = data.getInt32(8 * i + 4, true);
    }
    c.ripLo = data.getInt32(RIP, true);
    c.ripHi = data.getInt32(RIP + 4, true);
    setFlags(c, data.getInt32(RFLAGS, true));
  }

  #updateSystem(): void {
    const c = this.#cpu;
    const block = this.#block;
    block[0] = c.mode64 ? 8 : c.segments[CS]!.big ? 4 : 2;
    for (const [name, segment] of SEGMENTS) {
      const at = SREGS_OFFSET + kvmSregs.offsetOf(name);
      putSegment(block, at, c.segments[segment]!);
      const slot = SEGMENT_BASE + 2 * segment;
      putHalves(block, at, c.r[slot]!, c.r[slot + 1]!);
    }
    putTable(block, SREGS_OFFSET + kvmSregs.offsetOf('gdt'), c.gdtr);
    putTable(block, SREGS_OFFSET + kvmSregs.offsetOf('idt'), c.idtr);
    for (const [name, number] of [
      ['cr0', 0],
      ['cr3', 3],
      ['cr4', 4],
      ['cr8', 8],
    ] as const) {
      putHalves(block, SREGS_OFFSET + kvmSregs.offsetOf(name), readCr(c, number), c.hi);
    }
    putHalves(block, CR2, c.cr2Lo, c.cr2Hi);
    putU32(block, SREGS_OFFSET + kvmSregs.offsetOf('efer'), c.efer);
    putU64(block, SREGS_OFFSET + kvmSregs.offsetOf('apic_base'), c.msrs.get(0x1b)!);
    Object.values(EVENT_MSRS).forEach((index, i) => {
      putU64(block, MSRS_OFFSET + 8 * i, c.msrs.get(index)!);
    });
  }
}

function putSegment(into: Uint8Array, at: number, segment: Segment): void {
  putU32(into, at + segmentField.limit, segment.limit);
  putU16(into, at + segmentField.selector, segment.selector);
  into[at + segmentField.type] = segment.type;
  into[at + segmentField.present] = segment.present ? 1 : 0;
  into[at + segmentField.dpl] = segment.dpl;
  into[at + segmentField.db] = segment.big ? 1 : 0;
  into[at + segmentField.s] = segment.system ? 0 : 1;
  into[at + segmentField.l] = segment.long ? 1 : 0;
  into[at + segmentField.g] = segment.granular ? 1 : 0;
  into[at + segmentField.avl] = segment.available ? 1 : 0;
  into[at + segmentField.unusable] = segment.unusable ? 1 : 0;
}

function putTable(into: Uint8Array, at: number, table: TableRegister): void {
  putHalves(into, at, table.lo, table.hi);
  putU16(into, at + 8, table.limit);
}

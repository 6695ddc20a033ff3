import { SREGS_OFFSET } from '../../abi/state.ts';
import { kvmSregs, NUMBERED_REGISTERS } from '../../abi/x86.ts';
import { mtrrType } from '../../machine/mtrr.ts';
import {
  type CpuState,
  clearBlock,
  finishBlock,
  putRegister,
  putSegment,
  putTable,
  SEGMENT_NAMES,
  type SegmentCache,
  type SegmentName,
} from './cpu-state.ts';
import type { CpuSections, Section } from './device-state.ts';
import { writeXsave } from './xsave.ts';

/** Where the value of an MSR is: a field of the section, with what it is when QEMU left the field out. */
type MsrSource = readonly [field: string, index?: number, absent?: bigint];

/** The MSRs that QEMU's CPU section holds (Intel SDM volume 4, AMD APM volume 2, and KVM's own). */
const MSR_SOURCES: ReadonlyMap<number, MsrSource> = new Map<number, MsrSource>([
  [0x11, ['wall_clock_msr']],
  [0x12, ['system_time_msr']],
  [0x3a, ['feature_control', 0, 0n]],
  [0x3b, ['tsc_adjust', 0, 0n]],
  [0x48, ['spec_ctrl', 0, 0n]],
  [0x174, ['sysenter_cs']],
  [0x175, ['sysenter_esp']],
  [0x176, ['sysenter_eip']],
  [0x179, ['mcg_cap']],
  [0x17a, ['mcg_status']],
  [0x17b, ['mcg_ctl']],
  [0x1a0, ['misc_enable', 0, 1n]],
  ...Array.from({ length: 16 }, (_, i): [number, MsrSource] => [0x200 + i, ['mtrr_var', i]]),
  [0x250, ['mtrr_fixed', 0]],
  [0x258, ['mtrr_fixed', 1]],
  [0x259, ['mtrr_fixed', 2]],
  ...Array.from({ length: 8 }, (_, i): [number, MsrSource] => [0x268 + i, ['mtrr_fixed', 3 + i]]),
  [0x277, ['pat']],
  [0x2ff, ['mtrr_deftype']],
  ...Array.from({ length: 40 }, (_, i): [number, MsrSource] => [0x400 + i, ['mce_banks', i]]),
  [0x6e0, ['tsc_deadline', 0, 0n]],
  [0xda0, ['xss', 0, 0n]],
  [0x4b564d00, ['wall_clock_msr']],
  [0x4b564d01, ['system_time_msr']],
  [0x4b564d02, ['async_pf', 0, 0n]],
  [0x4b564d03, ['steal_time', 0, 0n]],
  [0x4b564d04, ['pv_eoi', 0, 0n]],
  [0x4b564d05, ['poll_control', 0, 1n]],
  [0xc0000080, ['efer']],
  [0xc0000081, ['star']],
  [0xc0000082, ['lstar']],
  [0xc0000083, ['cstar']],
  [0xc0000084, ['fmask']],
  [0xc0000100, ['fs.base']],
  [0xc0000101, ['gs.base']],
  [0xc0000102, ['kernelgsbase']],
  [0xc0000103, ['tsc_aux']],
  [0xc0010117, ['vm_hsave']],
]);

const MSR_APIC_BASE = 0x1b;
const MSR_MTRR_CAP = 0xfe;
/** 8 variable ranges, fixed ranges and write combining: what every QEMU CPU with MTRRs has. */
const MTRR_CAP = 0x508n;

/** A vCPU as QEMU's device state shows it. */
export class SavedCpu implements CpuState {
  readonly #cpu: Section;
  readonly #common: Section | undefined;
  readonly #apic: Section | undefined;
  readonly #tcg: boolean;

  /** `tcg` decides in which order QEMU keeps the x87 registers. */
  constructor({ cpu, common, apic }: CpuSections, tcg: boolean) {
    this.#cpu = cpu;
    this.#common = common;
    this.#apic = apic;
    this.#tcg = tcg;
  }

  get started(): boolean {
    return !(this.#apic?.has('wait_for_sipi') && this.#apic.number('wait_for_sipi') !== 0);
  }

  get halted(): boolean {
    return this.#common !== undefined && this.#common.number('halted') !== 0;
  }

  get apicId(): number | undefined {
    return this.#apic?.number('id');
  }

  get rip(): bigint {
    return this.#cpu.get('rip');
  }

  /** A register by QEMU's name. */
  register(name: 'rip' | 'cr3' | 'efer'): bigint {
    return this.#cpu.get(name);
  }

  get xcr0(): bigint {
    return this.#cpu.get('xcr0');
  }

  writeBlock(into: Uint8Array): void {
    const cpu = this.#cpu;
    clearBlock(into);
    for (const name of NUMBERED_REGISTERS) putRegister(into, name, cpu.get(name));
    for (const name of ['rip', 'rflags', 'cr0', 'cr2', 'cr3', 'cr4', 'efer'] as const) {
      putRegister(into, name, cpu.get(name));
    }
    putRegister(into, 'cr8', BigInt((this.#apic?.number('tpr') ?? 0) >> 4));
    putRegister(into, 'apic_base', this.msr(MSR_APIC_BASE) ?? 0n);
    for (const name of SEGMENT_NAMES) putSegment(into, name, this.#segment(name));
    for (const name of ['gdt', 'idt'] as const) {
      putTable(into, name, cpu.get(`${name}.base`), cpu.number(`${name}.limit`));
    }
    this.#putPendingInterrupt(into);
    finishBlock(into, (index) => this.msr(index));
  }

  msr(index: number): bigint | undefined {
    if (index === MSR_APIC_BASE) return this.#apic?.get('apicbase');
    if (index === MSR_MTRR_CAP) return MTRR_CAP;
    const source = MSR_SOURCES.get(index);
    if (source === undefined) return undefined;
    const [field, element, absent] = source;
    return this.#cpu.has(field) ? this.#cpu.get(field, element) : absent;
  }

  writeXsave(into: Uint8Array): void {
    writeXsave(this.#cpu, this.#tcg, into);
  }

  mtrrType(gpa: number): number {
    return mtrrType((index) => this.msr(index)!, gpa);
  }

  #segment(name: SegmentName): SegmentCache {
    return {
      selector: this.#cpu.number(`${name}.selector`),
      base: this.#cpu.get(`${name}.base`),
      limit: this.#cpu.number(`${name}.limit`),
      flags: this.#cpu.number(`${name}.flags`),
    };
  }

  /** kvm_sregs.interrupt_bitmap: the vector that is being injected. */
  #putPendingInterrupt(into: Uint8Array): void {
    const vector = this.#cpu.number('interrupt_injected');
    if (vector > 0xff) return;
    const at = SREGS_OFFSET + kvmSregs.offsetOf('interrupt_bitmap') + (vector >> 3);
    into[at] = into[at]! | (1 << (vector & 7));
  }
}

/*
 * The CPU section of QEMU's device state ("vmstate"), version 12: the order and sizes of QEMU's
 * target/i386/machine.c. All integers are big-endian and nothing is padded.
 */

import { NUMBERED_REGISTERS } from '../../abi/x86.ts';

/** [name, bytes of one element, number of elements (1 if not given)]. */
type Row = readonly [name: string, size: number, count?: number];

export interface LayoutField {
  readonly offset: number;
  readonly size: number;
  readonly count: number;
}

export interface Layout {
  readonly fields: ReadonlyMap<string, LayoutField>;
  readonly size: number;
}

function layout(rows: readonly Row[]): Layout {
  const fields = new Map<string, LayoutField>();
  let offset = 0;
  for (const [name, size, count = 1] of rows) {
    fields.set(name, { offset, size, count });
    offset += size * count;
  }
  return { fields, size: offset };
}

/** The segment caches in QEMU's order; each has a selector, a base, a limit and flags. */
export const SEGMENT_ORDER = ['es', 'cs', 'ss', 'ds', 'fs', 'gs', 'ldt', 'tr', 'gdt', 'idt'] as const;

const segments = SEGMENT_ORDER.flatMap((name): Row[] => [
  [`${name}.selector`, 4],
  [`${name}.base`, 8],
  [`${name}.limit`, 4],
  [`${name}.flags`, 4],
]);

const fpuRegisters = Array.from({ length: 8 }, (_, i): Row[] => [
  [`st${i}.mantissa`, 8],
  [`st${i}.exponent`, 2],
]).flat();

export const CPU_VERSION = 12;

export const CPU_LAYOUT = layout([
  ...NUMBERED_REGISTERS.map((name): Row => [name, 8]),
  ['rip', 8],
  ['rflags', 8],
  ['hflags', 4],
  ['fcw', 2],
  ['fsw', 2],
  ['ftw', 2],
  ['fpu-format', 2],
  ...fpuRegisters,
  ...segments,
  ['sysenter_cs', 4],
  ['sysenter_esp', 8],
  ['sysenter_eip', 8],
  ['cr0', 8],
  ['cr2', 8],
  ['cr3', 8],
  ['cr4', 8],
  ['dr', 8, 8],
  ['a20_mask', 4],
  ['mxcsr', 4],
  ['xmm', 16, 16],
  ['efer', 8],
  ['star', 8],
  ['lstar', 8],
  ['cstar', 8],
  ['fmask', 8],
  ['kernelgsbase', 8],
  ['smbase', 4],
  ['pat', 8],
  ['hflags2', 4],
  ['vm_hsave', 8],
  ['vm_vmcb', 8],
  ['tsc_offset', 8],
  ['intercept', 8],
  ['intercept_cr_dr', 2, 4],
  ['intercept_exceptions', 4],
  ['v_tpr', 1],
  ['mtrr_fixed', 8, 11],
  ['mtrr_deftype', 8],
  ['mtrr_var', 8, 16],
  ['interrupt_injected', 4],
  ['mp_state', 4],
  ['tsc', 8],
  ['exception_nr', 4],
  ['soft_interrupt', 1],
  ['nmi_injected', 1],
  ['nmi_pending', 1],
  ['has_error_code', 1],
  ['sipi_vector', 4],
  ['mcg_cap', 8],
  ['mcg_status', 8],
  ['mcg_ctl', 8],
  ['mce_banks', 8, 40],
  ['tsc_aux', 8],
  ['system_time_msr', 8],
  ['wall_clock_msr', 8],
  ['xcr0', 8],
  ['xstate_bv', 8],
  ['ymmh', 16, 16],
]);

/** Parts that QEMU adds only when they differ from their default. Any other one ends the section for us. */
export const CPU_SUBSECTIONS: ReadonlyMap<string, Layout> = new Map(
  Object.entries({
    'cpu/exception_info': layout([
      ['exception_flags', 1, 3],
      ['exception_payload', 8],
    ]),
    'cpu/async_pf_msr': layout([['async_pf', 8]]),
    'cpu/async_pv_eoi_msr': layout([['pv_eoi', 8]]),
    'cpu/steal_time_msr': layout([['steal_time', 8]]),
    'cpu/poll_control_msr': layout([['poll_control', 8]]),
    'cpu/fpop_ip_dp': layout([
      ['fpop', 2],
      ['fpip', 8],
      ['fpdp', 8],
    ]),
    'cpu/msr_tsc_adjust': layout([['tsc_adjust', 8]]),
    'cpu/msr_tscdeadline': layout([['tsc_deadline', 8]]),
    'cpu/msr_ia32_misc_enable': layout([['misc_enable', 8]]),
    'cpu/msr_ia32_feature_control': layout([['feature_control', 8]]),
    'cpu/msr_architectural_pmu': layout([
      ['fixed_ctr_ctrl', 8],
      ['global_ctrl', 8],
      ['global_status', 8],
      ['global_ovf_ctrl', 8],
      ['fixed_counters', 8, 3],
      ['gp_counters', 8, 18],
      ['gp_evtsel', 8, 18],
    ]),
    'cpu/mpx': layout([
      ['bnd', 8, 8],
      ['bndcfgu', 8],
      ['bndstatus', 8],
      ['bndcfgs', 8],
    ]),
    'cpu/avx512': layout([
      ['opmask', 8, 8],
      ['zmmh', 32, 16],
      ['hi16_zmm', 64, 16],
    ]),
    'cpu/xss': layout([['xss', 8]]),
    'cpu/umwait': layout([['umwait', 4]]),
    'cpu/tsc_khz': layout([['tsc_khz', 8]]),
    'cpu/msr_smi_count': layout([['smi_count', 8]]),
    'cpu/pkru': layout([['pkru', 4]]),
    'cpu/spec_ctrl': layout([['spec_ctrl', 8]]),
  }),
);

export const COMMON_VERSION = 1;

/** What QEMU keeps for vCPUs of every architecture. */
export const COMMON_LAYOUT = layout([
  ['halted', 4],
  ['interrupt_request', 4],
]);

export const APIC_VERSION = 3;

/** The head of the section of a vCPU's local APIC; its subsection `apic_sipi` says whether the vCPU waits for SIPI. */
export const APIC_LAYOUT = layout([
  ['apicbase', 4],
  ['id', 1],
  ['arb_id', 1],
  ['tpr', 1],
  ['spurious_vec', 4],
  ['log_dest', 1],
  ['dest_mode', 1],
  ['isr', 4, 8],
  ['tmr', 4, 8],
  ['irr', 4, 8],
  ['lvt', 4, 6],
  ['esr', 4],
  ['icr', 4, 2],
  ['divide_conf', 4],
  ['count_shift', 4],
  ['initial_count', 4],
  ['initial_count_load_time', 8],
  ['next_time', 8],
  ['timer_expiry', 8],
]);

export const APIC_SUBSECTIONS: ReadonlyMap<string, Layout> = new Map(
  Object.entries({
    apic_sipi: layout([
      ['sipi_vector', 4],
      ['wait_for_sipi', 4],
    ]),
  }),
);

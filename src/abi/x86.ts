import { array, type Of, pad, struct, u8, u16, u32, u64 } from './struct.ts';

/** struct kvm_regs (include/uapi/asm/kvm.h). */
export const kvmRegs = struct('kvm_regs', 144, {
  rax: u64,
  rbx: u64,
  rcx: u64,
  rdx: u64,
  rsi: u64,
  rdi: u64,
  rsp: u64,
  rbp: u64,
  r8: u64,
  r9: u64,
  r10: u64,
  r11: u64,
  r12: u64,
  r13: u64,
  r14: u64,
  r15: u64,
  rip: u64,
  rflags: u64,
});
export type KvmRegs = Of<typeof kvmRegs>;

/** The general registers in the order of their numbers in instructions (Intel SDM vol. 2, 2.1.5). */
export const NUMBERED_REGISTERS = [
  ...(['rax', 'rcx', 'rdx', 'rbx', 'rsp', 'rbp', 'rsi', 'rdi'] as const),
  ...(['r8', 'r9', 'r10', 'r11', 'r12', 'r13', 'r14', 'r15'] as const),
] as const;

/** struct kvm_segment. */
export const kvmSegment = struct('kvm_segment', 24, {
  base: u64,
  limit: u32,
  selector: u16,
  type: u8,
  present: u8,
  dpl: u8,
  db: u8,
  s: u8,
  l: u8,
  g: u8,
  avl: u8,
  unusable: u8,
  padding: pad(1),
});
export type KvmSegment = Of<typeof kvmSegment>;

/** struct kvm_dtable. */
export const kvmDtable = struct('kvm_dtable', 16, { base: u64, limit: u16, padding: pad(6) });
export type KvmDtable = Of<typeof kvmDtable>;

/** struct kvm_sregs. */
export const kvmSregs = struct('kvm_sregs', 312, {
  cs: kvmSegment,
  ds: kvmSegment,
  es: kvmSegment,
  fs: kvmSegment,
  gs: kvmSegment,
  ss: kvmSegment,
  tr: kvmSegment,
  ldt: kvmSegment,
  gdt: kvmDtable,
  idt: kvmDtable,
  cr0: u64,
  cr2: u64,
  cr3: u64,
  cr4: u64,
  cr8: u64,
  efer: u64,
  apic_base: u64,
  interrupt_bitmap: array(u64, 4),
});
export type KvmSregs = Of<typeof kvmSregs>;

/** The MSRs of an event (struct kvmi_vcpu_event_arch), by their names there. */
export const EVENT_MSRS = {
  sysenter_cs: 0x174,
  sysenter_esp: 0x175,
  sysenter_eip: 0x176,
  efer: 0xc0000080,
  star: 0xc0000081,
  lstar: 0xc0000082,
  cstar: 0xc0000083,
  pat: 0x277,
  shadow_gs: 0xc0000102,
} as const;

const eventMsrs = struct('msrs', 72, {
  sysenter_cs: u64,
  sysenter_esp: u64,
  sysenter_eip: u64,
  efer: u64,
  star: u64,
  lstar: u64,
  cstar: u64,
  pat: u64,
  shadow_gs: u64,
});

/**
 * The x86 block of an event (struct kvmi_vcpu_event_arch, kvmi.rst "KVMI_VCPU_EVENT"). `mode` is the
 * operand size of the code that runs: 2, 4 or 8 bytes. `view` is 0 but in dialect v7 with EPT views.
 */
export const vcpuState = struct('kvmi_vcpu_event_arch', 536, {
  mode: u8,
  padding1: pad(1),
  view: u16,
  padding2: pad(4),
  regs: kvmRegs,
  sregs: kvmSregs,
  msrs: eventMsrs,
});
export type VcpuStateValues = Of<typeof vcpuState>;

/** struct kvm_msr_entry. */
export const kvmMsrEntry = struct('kvm_msr_entry', 16, { index: u32, reserved: u32, data: u64 });

export const KVM_XSAVE_SIZE = 4096;

/** Bits of control registers and EFER that decide how the vCPU addresses memory. */
export const CR0_PE = 1n;
export const CR0_PG = 1n << 31n;
export const CR4_PSE = 1n << 4n;
export const CR4_PAE = 1n << 5n;
export const CR4_LA57 = 1n << 12n;
export const EFER_LME = 1n << 8n;
export const EFER_LMA = 1n << 10n;
export const EFER_NXE = 1n << 11n;

/** Bits of rflags. */
export const RFLAGS_TF = 1n << 8n;
export const RFLAGS_IF = 1n << 9n;
export const RFLAGS_NT = 1n << 14n;
export const RFLAGS_RF = 1n << 16n;
export const RFLAGS_VM = 1n << 17n;

/** Exception vectors. */
export const VECTOR = {
  DE: 0,
  DB: 1,
  NMI: 2,
  BP: 3,
  OF: 4,
  BR: 5,
  UD: 6,
  NM: 7,
  DF: 8,
  TS: 10,
  NP: 11,
  SS: 12,
  GP: 13,
  PF: 14,
  MF: 16,
  AC: 17,
  MC: 18,
  XM: 19,
  VE: 20,
  CP: 21,
} as const;

const WITH_ERROR_CODE: ReadonlySet<number> = new Set([
  VECTOR.DF,
  VECTOR.TS,
  VECTOR.NP,
  VECTOR.SS,
  VECTOR.GP,
  VECTOR.PF,
  VECTOR.AC,
  VECTOR.CP,
]);

/** Whether the processor pushes an error code with this exception (Intel SDM volume 3, table 6-1). */
export function hasErrorCode(vector: number): boolean {
  return WITH_ERROR_CODE.has(vector);
}

import { array, byteArray, pad, s32, struct, u8, u16, u32, u64 } from './struct.ts';

/** Request numbers of /dev/kvm, VM and vCPU descriptors (include/uapi/linux/kvm.h), x86-64. */
export const KVM = {
  GET_API_VERSION: 0xae00,
  CREATE_VM: 0xae01,
  CHECK_EXTENSION: 0xae03,
  GET_VCPU_MMAP_SIZE: 0xae04,
  GET_SUPPORTED_CPUID: 0xc008ae05,
  CREATE_VCPU: 0xae41,
  SET_USER_MEMORY_REGION: 0x4020ae46,
  SET_USER_MEMORY_REGION2: 0x40a0ae49,
  RUN: 0xae80,
  GET_REGS: 0x8090ae81,
  SET_REGS: 0x4090ae82,
  GET_SREGS: 0x8138ae83,
  SET_SREGS: 0x4138ae84,
  GET_MSRS: 0xc008ae88,
  SET_MSRS: 0x4008ae89,
  SET_CPUID2: 0x4008ae90,
  GET_CPUID2: 0xc008ae91,
  GET_MP_STATE: 0x8004ae98,
  SET_GUEST_DEBUG: 0x4048ae9b,
  GET_VCPU_EVENTS: 0x8040ae9f,
  SET_VCPU_EVENTS: 0x4040aea0,
  ENABLE_CAP: 0x4068aea3,
  GET_TSC_KHZ: 0xaea3,
  GET_XSAVE: 0x9000aea4,
  SET_XSAVE: 0x5000aea5,
  GET_XCRS: 0x8188aea6,
  CLEAR_DIRTY_LOG: 0xc018aec0,
  X86_SET_MSR_FILTER: 0x4188aec6,
} as const;

/** Extensions of KVM_CHECK_EXTENSION and KVM_ENABLE_CAP. */
export const KVM_CAP = {
  NR_MEMSLOTS: 10,
  READONLY_MEM: 81,
  SYNC_REGS: 74,
  IMMEDIATE_EXIT: 136,
  X86_USER_SPACE_MSR: 188,
  X86_MSR_FILTER: 189,
  EXIT_ON_EMULATION_FAILURE: 204,
} as const;

/** `exit_reason` of the kvm_run page. */
export const KVM_EXIT = {
  IO: 2,
  DEBUG: 4,
  HLT: 5,
  MMIO: 6,
  SHUTDOWN: 8,
  INTR: 10,
  INTERNAL_ERROR: 17,
  X86_RDMSR: 29,
  X86_WRMSR: 30,
} as const;

/** Offsets in the kvm_run page (struct kvm_run), in bytes. The union of exits starts at `exit`. */
export const KVM_RUN_PAGE = {
  immediateExit: 1,
  exitReason: 8,
  exit: 32,
  validRegs: 288,
  dirtyRegs: 296,
  regs: 304,
  sregs: 448,
} as const;

/** Bits of kvm_valid_regs and kvm_dirty_regs. */
export const KVM_SYNC_X86 = { REGS: 1n, SREGS: 2n, EVENTS: 4n } as const;

/** struct kvm_userspace_memory_region. */
export const kvmMemoryRegion = struct('kvm_userspace_memory_region', 32, {
  slot: u32,
  flags: u32,
  guest_phys_addr: u64,
  memory_size: u64,
  userspace_addr: u64,
});
/** Flags of it; GUEST_MEMFD only with KVM_SET_USER_MEMORY_REGION2. */
export const KVM_MEM = { LOG_DIRTY_PAGES: 1, READONLY: 2, GUEST_MEMFD: 4 } as const;

/** struct kvm_guest_debug, x86. */
export const kvmGuestDebug = struct('kvm_guest_debug', 72, {
  control: u32,
  padding: pad(4),
  debugreg: array(u64, 8),
});
export const KVM_GUESTDBG = {
  ENABLE: 1,
  SINGLESTEP: 2,
  USE_SW_BP: 0x10000,
  USE_HW_BP: 0x20000,
} as const;

/** The exit structure of KVM_EXIT_DEBUG (struct kvm_debug_exit_arch). */
export const kvmDebugExit = struct('kvm_debug_exit_arch', 32, {
  exception: u32,
  padding: pad(4),
  pc: u64,
  dr6: u64,
  dr7: u64,
});

/** The exit structure of KVM_EXIT_MMIO. */
export const kvmMmioExit = struct('kvm_mmio_exit', 24, {
  phys_addr: u64,
  data: byteArray(8),
  len: u32,
  is_write: u8,
  padding: pad(3),
});

/** The exit structure of KVM_EXIT_X86_RDMSR and _WRMSR. */
export const kvmMsrExit = struct('kvm_msr_exit', 24, {
  error: u8,
  padding: pad(7),
  reason: u32,
  index: u32,
  data: u64,
});
/** Why an MSR access left the guest: the filter denied it. */
export const KVM_MSR_EXIT_REASON_FILTER = 4;

/** struct kvm_enable_cap. */
export const kvmEnableCap = struct('kvm_enable_cap', 104, {
  cap: u32,
  flags: u32,
  args: array(u64, 4),
  padding: pad(64),
});

/** struct kvm_msr_filter_range. `bitmap` is the address of one bit an MSR: set means allowed. */
export const kvmMsrFilterRange = struct('kvm_msr_filter_range', 24, {
  flags: u32,
  nmsrs: u32,
  base: u32,
  padding: pad(4),
  bitmap: u64,
});
export const KVM_MSR_FILTER_WRITE = 2;
/** struct kvm_msr_filter: flags, then 16 ranges. */
export const kvmMsrFilter = struct('kvm_msr_filter', 392, {
  flags: u32,
  padding: pad(4),
  ranges: array(kvmMsrFilterRange, 16),
});

/** struct kvm_vcpu_events, x86. */
export const kvmVcpuEvents = struct('kvm_vcpu_events', 64, {
  exception_injected: u8,
  exception_nr: u8,
  exception_has_error_code: u8,
  exception_pending: u8,
  exception_error_code: u32,
  interrupt_injected: u8,
  interrupt_nr: u8,
  interrupt_soft: u8,
  interrupt_shadow: u8,
  nmi_injected: u8,
  nmi_pending: u8,
  nmi_masked: u8,
  nmi_pad: pad(1),
  sipi_vector: u32,
  flags: u32,
  smi: u32,
  triple_fault_pending: u8,
  reserved: pad(26),
  exception_has_payload: u8,
  exception_payload: u64,
});

/** struct kvm_cpuid_entry2. */
export const kvmCpuidEntry = struct('kvm_cpuid_entry2', 40, {
  function: u32,
  index: u32,
  flags: u32,
  eax: u32,
  ebx: u32,
  ecx: u32,
  edx: u32,
  padding: pad(12),
});
/** The leaf depends on ecx. */
export const KVM_CPUID_SIGNIFICANT_INDEX = 1;

/** struct kvm_xcr, and how many of them struct kvm_xcrs has after its 8-byte header. */
export const kvmXcr = struct('kvm_xcr', 16, { xcr: u32, reserved: pad(4), value: u64 });
export const KVM_XCRS_SIZE = 392;

/** struct seccomp_notif_resp and struct seccomp_notif (include/uapi/linux/seccomp.h), x86-64. */
export const seccompNotification = struct('seccomp_notif', 80, {
  id: u64,
  pid: u32,
  flags: u32,
  nr: s32,
  arch: u32,
  instruction_pointer: u64,
  args: array(u64, 6),
});
export const seccompResponse = struct('seccomp_notif_resp', 24, {
  id: u64,
  value: u64,
  error: s32,
  flags: u32,
});

/** struct sock_filter: one instruction of a classic BPF program. */
export const sockFilter = struct('sock_filter', 8, { code: u16, jt: u8, jf: u8, k: u32 });

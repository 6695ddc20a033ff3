/** Registers as bytes in the layout of the ioctl structures; decode what is needed with abi/. */
export interface RegistersReply {
  /** 2, 4 or 8: operand size in bytes of the code that runs. */
  mode: number;
  /** kvm_regs, 144 bytes. */
  regs: Uint8Array;
  /** kvm_sregs, 312 bytes. */
  sregs: Uint8Array;
  nmsrs: number;
  msrs: { index: number; reserved: number; data: bigint }[];
}

export interface PageAccessEntry {
  gpa: number;
  /** ACCESS bits that are allowed. */
  access: number;
  /** Dialect v9 only: whether a frame without memory is an error. */
  visible?: number;
  /** Set by decoding: padding in the entry was not zero. */
  padding?: boolean;
}

type Nothing = Record<never, never>;
type Enable = { enable: number };
type ControlEvents = { event_id: number; enable: number };

/** What each command asks for, in every dialect that has it. Fields that only one dialect has are optional. */
export interface Requests {
  GET_VERSION: Nothing;
  VM_CHECK_COMMAND: { id: number };
  VM_CHECK_EVENT: { id: number };
  VM_GET_INFO: Nothing;
  VM_CONTROL_EVENTS: ControlEvents;
  VM_READ_PHYSICAL: { gpa: number; size: number };
  VM_WRITE_PHYSICAL: { gpa: number; size: number; data: Uint8Array };
  VM_PAUSE_VCPU: { wait: number; vcpu?: number };
  VM_CONTROL_CLEANUP: Enable;
  VM_SET_PAGE_ACCESS: { view?: number; count: number; entries: PageAccessEntry[] };
  VM_GET_MAX_GFN: Nothing;
  VM_GET_MAP_TOKEN: Nothing;
  VM_CONTROL_SPP: Enable;
  VM_SET_PAGE_WRITE_BITMAP: { view: number; count: number; entries: { gpa: number; bitmap: number }[] };
  VM_CONTROL_CMD_RESPONSE: { enable: number; now: number; flags: number };
  VM_SET_PAGE_SVE: { view: number; suppress: number; gpa: number };
  VM_GET_NEXT_AVAILABLE_GFN: Nothing;
  VM_QUERY_PHYSICAL: { gfn: number };
  VM_CREATE_EPT_VIEW: Nothing;
  VM_DESTROY_EPT_VIEW: { view: number };
  VCPU_GET_INFO: Nothing;
  VCPU_CONTROL_EVENTS: ControlEvents;
  VCPU_GET_REGISTERS: { nmsrs: number; msrs_idx: number[] };
  /** kvm_regs, 144 bytes. */
  VCPU_SET_REGISTERS: { regs: Uint8Array };
  VCPU_GET_CPUID: { function: number; index: number };
  VCPU_CONTROL_CR: { cr: number; enable: number };
  VCPU_INJECT_EXCEPTION: { nr: number; error_code: number; address: bigint };
  VCPU_GET_XCR: { xcr: number };
  VCPU_GET_XSAVE: Nothing;
  VCPU_SET_XSAVE: { data: Uint8Array };
  VCPU_GET_MTRR_TYPE: { gpa: number };
  VCPU_CONTROL_MSR: { enable: number; msr: number };
  VCPU_CONTROL_SINGLESTEP: Enable;
  VCPU_TRANSLATE_GVA: { gva: bigint };
  VCPU_SET_VE_INFO: { gpa: number; trigger_vmexit: number };
  VCPU_DISABLE_VE: Nothing;
  VCPU_SET_EPT_VIEW: { view: number };
  VCPU_GET_EPT_VIEW: Nothing;
  VCPU_CONTROL_EPT_VIEW: { view: number; visible: number };
  VCPU_ALLOC_GFN: { gfn: number };
  VCPU_FREE_GFN: { gfn: number };
  VCPU_CHANGE_GFN: { data: Uint8Array };
}

export interface VersionReply {
  version: number;
  /** 0 in dialects v7 and v9, where it is padding. */
  max_msg_size: number;
  singlestep: number;
  /** Features of dialect v7. */
  spp?: number;
  vmfunc?: number;
  eptp?: number;
  ve?: number;
}

/** What each command is answered with, when it succeeds. */
export interface Replies extends Record<keyof Requests, object> {
  GET_VERSION: VersionReply;
  VM_GET_INFO: { vcpu_count: number };
  VM_READ_PHYSICAL: { data: Uint8Array };
  VM_GET_MAX_GFN: { gfn: number };
  VM_GET_MAP_TOKEN: { token: bigint[] };
  VM_GET_NEXT_AVAILABLE_GFN: { gfn: number };
  VM_QUERY_PHYSICAL: { gfn: number; size: number };
  VM_CREATE_EPT_VIEW: { view: number };
  VCPU_GET_INFO: { tsc_speed: bigint };
  VCPU_GET_REGISTERS: RegistersReply;
  VCPU_GET_CPUID: { eax: number; ebx: number; ecx: number; edx: number };
  VCPU_GET_XCR: { value: bigint };
  VCPU_GET_XSAVE: { area: Uint8Array };
  VCPU_GET_MTRR_TYPE: { type: number };
  VCPU_TRANSLATE_GVA: { gpa: number };
  VCPU_GET_EPT_VIEW: { view: number };
}

/** Every command of every dialect, by the name that the newest series gave it. */
export type CommandName = keyof Requests;
/** Those that a vCPU carries out between guest entries. */
export type VcpuCommandName = Extract<CommandName, `VCPU_${string}`>;
/** Those that the receiver carries out. */
export type VmCommandName = Exclude<CommandName, VcpuCommandName>;

/** Data of the events; UNHOOK, PAUSE, HYPERCALL and CREATE_VCPU have none, nor has XSETBV in v7. */
export interface EventData {
  UNHOOK: Nothing;
  PAUSE: Nothing;
  HYPERCALL: Nothing;
  BREAKPOINT: { gpa: number; insn_len: number };
  CR: { cr: number; old_value: bigint; new_value: bigint };
  TRAP: { nr: number; error_code: number; address: bigint };
  XSETBV: { xcr?: number; old_value?: bigint; new_value?: bigint };
  DESCRIPTOR: { descriptor: number; write: number };
  MSR: { msr: number; old_value: bigint; new_value: bigint };
  PF: { gva: bigint; gpa: number; access: number; view?: number };
  SINGLESTEP: { failed: number };
  CREATE_VCPU: Nothing;
  CPUID: { function: number; index: number; insn_length: number };
  CMD_ERROR: { err: number; msg_seq: number; msg_id: number };
}

export type EventName = keyof EventData;

/** Reply data of the events that have some. */
export interface EventReplyData {
  /** CR and MSR: what is written. */
  new_val?: bigint;
  /** PF in dialect v7. */
  ctx_addr?: bigint;
  ctx_size?: number;
  singlestep?: number;
  rep_complete?: number;
  ctx_data?: Uint8Array;
}

import { address, array, byteArray, empty, pad, s32, struct, u8, u16, u32, u64 } from '../abi/struct.ts';
import { KVM_XSAVE_SIZE, kvmMsrEntry, kvmRegs } from '../abi/x86.ts';
import { bytesOnly, fixed, flagged, withArray, withBytes } from './body.ts';

/*
 * The layouts that KVMI messages are made of. A name without a dialect is the same in every dialect that
 * has the message; offsets are inside the payload, after the vCPU header where there is one.
 */

/** struct kvmi_vcpu_hdr: in front of every vCPU command and event reply. */
export const vcpuHeader = struct('kvmi_vcpu_hdr', 8, { vcpu: u16, padding1: pad(2), padding2: pad(4) });

/** struct kvmi_error_code: in front of the data of every reply. */
export const errorCode = struct('kvmi_error_code', 8, { err: s32, padding: pad(4) });

export const none = fixed(empty);

const feature = struct('check', 8, { id: u16, padding1: pad(2), padding2: pad(4) });
const controlEvents = struct('control_events', 8, {
  event_id: u16,
  enable: u8,
  padding1: pad(1),
  padding2: pad(4),
});
const enableOnly = struct('enable', 8, { enable: u8, padding1: pad(1), padding2: pad(2), padding3: pad(4) });
const gpaOnly = struct('gpa', 8, { gpa: address });
const gvaOnly = struct('gva', 8, { gva: u64 });
const gfnOnly = struct('gfn', 8, { gfn: address });
const viewOnly = struct('view', 8, { view: u16, padding1: pad(2), padding2: pad(4) });
const physical = struct('physical', 16, { gpa: address, size: u16, padding1: pad(2), padding2: pad(4) });
const physicalV7 = struct('physical', 16, { gpa: address, size: address });
const getRegisters = struct('get_registers', 8, { nmsrs: u16, padding1: pad(2), padding2: pad(4) });
const controlMsr = struct('control_msr', 8, { enable: u8, padding1: pad(1), padding2: pad(2), msr: u32 });
const pageAccessEntry = struct('page_access_entry', 16, {
  gpa: address,
  access: u8,
  padding1: pad(1),
  padding2: pad(2),
  padding3: pad(4),
});
const pageAccessEntryV9 = struct('page_access_entry', 16, {
  gpa: address,
  access: u8,
  visible: u8,
  padding1: pad(2),
  padding2: pad(4),
});

export const request = {
  check: fixed(feature),
  controlEvents: fixed(controlEvents),
  readPhysical: fixed(physical),
  readPhysicalV7: fixed(physicalV7),
  writePhysical: withBytes(physical, 'size'),
  writePhysicalV7: withBytes(physicalV7, 'size'),
  pause: fixed(struct('pause', 8, { wait: u8, padding1: pad(1), padding2: pad(2), padding3: pad(4) })),
  pauseV12: fixed(struct('pause', 8, { vcpu: u16, wait: u8, padding1: pad(1), padding2: pad(4) })),
  enable: fixed(enableOnly),
  pageAccessV7: withArray(
    struct('set_page_access', 8, { view: u16, count: u16, padding: pad(4) }),
    'entries',
    flagged(pageAccessEntry),
    'count',
  ),
  pageAccessV9: withArray(
    struct('set_page_access', 8, { count: u16, padding1: pad(2), padding2: pad(4) }),
    'entries',
    flagged(pageAccessEntryV9),
    'count',
  ),
  pageAccessV12: withArray(
    struct('set_page_access', 8, { count: u16, padding1: pad(2), padding2: pad(4) }),
    'entries',
    flagged(pageAccessEntry),
    'count',
  ),
  getRegisters: withArray(getRegisters, 'msrs_idx', u32, 'nmsrs'),
  setRegisters: fixed(struct('set_registers', kvmRegs.size, { regs: byteArray(kvmRegs.size) })),
  getCpuid: fixed(struct('get_cpuid', 8, { function: u32, index: u32 })),
  controlCr: fixed(struct('control_cr', 8, { cr: u8, enable: u8, padding1: pad(2), padding2: pad(4) })),
  controlCrV7: fixed(struct('control_cr', 8, { enable: u8, padding1: pad(1), padding2: pad(2), cr: u32 })),
  injectException: fixed(
    struct('inject_exception', 16, {
      nr: u8,
      padding1: pad(1),
      padding2: pad(2),
      error_code: u32,
      address: u64,
    }),
  ),
  getXcr: fixed(struct('get_xcr', 8, { xcr: u8, padding: pad(7) })),
  setXsave: bytesOnly,
  gpa: fixed(gpaOnly),
  gva: fixed(gvaOnly),
  gfn: fixed(gfnOnly),
  view: fixed(viewOnly),
  controlMsr: fixed(controlMsr),
  controlCmdResponse: fixed(
    struct('control_cmd_response', 8, { enable: u8, now: u8, flags: u8, padding1: pad(1), padding2: pad(4) }),
  ),
  controlEptView: fixed(
    struct('control_ept_view', 8, { view: u16, visible: u8, padding1: pad(1), padding2: pad(4) }),
  ),
  setVeInfo: fixed(struct('set_ve_info', 16, { gpa: address, trigger_vmexit: u8, padding: pad(7) })),
  setPageWriteBitmap: withArray(
    struct('set_page_write_bitmap', 8, { view: u16, count: u16, padding: pad(4) }),
    'entries',
    struct('page_write_bitmap_entry', 16, { gpa: address, bitmap: u32, padding: pad(4) }),
    'count',
  ),
  setPageSve: fixed(
    struct('set_page_sve', 16, {
      view: u16,
      suppress: u8,
      padding1: pad(1),
      padding2: pad(4),
      gpa: address,
    }),
  ),
  /** Two layouts, told apart by size: 16 bytes (kernel tree) or 24 with a view in front (libkvmi). */
  changeGfn: bytesOnly,
} as const;

export const changeGfnWithView = struct('change_gfn', 24, {
  view: u16,
  padding1: pad(2),
  padding2: pad(4),
  old_gfn: address,
  new_gfn: address,
});
export const changeGfnPlain = struct('change_gfn', 16, { old_gfn: address, new_gfn: address });

export const reply = {
  version: fixed(
    struct('get_version_reply', 16, {
      version: u32,
      max_msg_size: u32,
      singlestep: u8,
      padding: pad(7),
    }),
  ),
  versionV7: fixed(
    struct('get_version_reply', 16, {
      version: u32,
      max_msg_size: u32,
      spp: u8,
      vmfunc: u8,
      eptp: u8,
      ve: u8,
      singlestep: u8,
      padding: pad(3),
    }),
  ),
  info: fixed(struct('vm_get_info_reply', 16, { vcpu_count: u32, padding: pad(12) })),
  data: bytesOnly,
  vcpuInfo: fixed(struct('vcpu_get_info_reply', 8, { tsc_speed: u64 })),
  registers: withArray(
    struct('get_registers_reply', 472, {
      mode: u32,
      padding: pad(4),
      regs: byteArray(144),
      sregs: byteArray(312),
      nmsrs: u32,
      padding2: pad(4),
    }),
    'msrs',
    kvmMsrEntry,
    'nmsrs',
  ),
  cpuid: fixed(struct('get_cpuid_reply', 16, { eax: u32, ebx: u32, ecx: u32, edx: u32 })),
  value: fixed(struct('value', 8, { value: u64 })),
  xsave: fixed(struct('get_xsave_reply', KVM_XSAVE_SIZE, { area: byteArray(KVM_XSAVE_SIZE) })),
  mtrrType: fixed(struct('get_mtrr_type_reply', 8, { type: u8, padding: pad(7) })),
  gpa: fixed(gpaOnly),
  gfn: fixed(gfnOnly),
  view: fixed(viewOnly),
  token: fixed(struct('get_map_token_reply', 32, { token: array(u64, 4) })),
  queryPhysical: fixed(struct('query_physical_reply', 16, { gfn: address, size: address })),
} as const;

export const event = {
  none: empty,
  breakpoint: struct('breakpoint', 16, { gpa: address, insn_len: u8, padding: pad(7) }),
  cr: struct('cr', 24, { cr: u8, padding: pad(7), old_value: u64, new_value: u64 }),
  crV7: struct('cr', 24, { cr: u16, padding: pad(6), old_value: u64, new_value: u64 }),
  trap: struct('trap', 16, { nr: u8, padding1: pad(1), padding2: pad(2), error_code: u32, address: u64 }),
  xsetbv: struct('xsetbv', 24, { xcr: u8, padding: pad(7), old_value: u64, new_value: u64 }),
  descriptor: struct('descriptor', 8, { descriptor: u8, write: u8, padding: pad(6) }),
  msr: struct('msr', 24, { msr: u32, padding: pad(4), old_value: u64, new_value: u64 }),
  pf: struct('pf', 24, {
    gva: u64,
    gpa: address,
    access: u8,
    padding1: pad(1),
    padding2: pad(2),
    padding3: pad(4),
  }),
  pfV7: struct('pf', 24, {
    gva: u64,
    gpa: address,
    access: u8,
    padding1: pad(1),
    view: u16,
    padding2: pad(4),
  }),
  singlestep: struct('singlestep', 8, { failed: u8, padding: pad(7) }),
  cpuid: struct('cpuid', 16, {
    function: u32,
    index: u32,
    insn_length: u8,
    padding1: pad(3),
    padding2: pad(4),
  }),
  cmdError: struct('cmd_error', 16, { err: s32, msg_seq: u32, msg_id: u16, padding: pad(6) }),
} as const;

export const eventReply = {
  none: empty,
  newValue: struct('new_value', 8, { new_val: u64 }),
  pfV7: struct('pf_reply', 272, {
    ctx_addr: u64,
    ctx_size: u32,
    singlestep: u8,
    rep_complete: u8,
    padding: pad(2),
    ctx_data: byteArray(256),
  }),
} as const;

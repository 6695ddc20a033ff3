import { KVM_ERRNO } from '../abi/errno.ts';
import type { DialectName } from '../wire/index.ts';

const { KVM_EINVAL, KVM_ENOENT, KVM_ENOMEM, KVM_EOPNOTSUPP } = KVM_ERRNO;

/** What to do with a message that is not acceptable: end the connection, or answer with an error number. */
export type Refusal = 'close' | number;

/** How the dialects differ in behaviour; their layouts differ in wire/. */
export interface Rules {
  /** Padding in the vCPU header is not zero. */
  readonly headerPadding: Refusal;
  /** VM_PAUSE_VCPU with padding, and with the PAUSE event not allowed. */
  readonly pausePadding: Refusal;
  readonly pauseNotAllowed: Refusal;
  /** `enable` above 1 in event control is an error, not the same as 1. */
  readonly strictEnable: boolean;
  /** VM_CHECK_COMMAND and VM_CHECK_EVENT of an id that names nothing. */
  readonly checkUnknown: number;
  /** Sizes of the tables in which an id that names nothing is "not allowed" instead. */
  readonly checkTable: { readonly commands: number; readonly events: number };
  /** The ids that VM_CHECK_COMMAND knows besides commands: the event message of v9. */
  readonly checkKnowsEventMessage: boolean;
  /** The enable bit changes although the interception could not be installed. */
  readonly enableBitFirst: boolean;
  /** The only error of VCPU_CONTROL_EVENTS when the interception fails; undefined: the real one. */
  readonly interceptionError: number | undefined;
  /** VM_SET_PAGE_ACCESS shorter than it announces. */
  readonly shortPageAccess: Refusal;
  /** VM_SET_PAGE_ACCESS of a frame without memory; `visible` looks at the entry. */
  readonly frameMissing: 'error' | 'accept' | 'visible';
  /** VCPU_GET_REGISTERS with indices beyond the payload. */
  readonly shortGetRegisters: Refusal;
  /** VCPU_GET_REGISTERS whose reply does not fit a message. */
  readonly largeGetRegisters: number;
  /** An MSR that cannot be read is an error; otherwise its entry and the following stay 0. */
  readonly strictMsrs: boolean;
  /** VCPU_SET_REGISTERS and VCPU_SET_XSAVE with too few bytes are an error, not zero-extended. */
  readonly wholeRegisters: boolean;
  /** VCPU_SET_XSAVE without a vCPU header. */
  readonly missingXsaveHeader: Refusal;
  /** VCPU_INJECT_EXCEPTION needs the TRAP event to be allowed. */
  readonly injectNeedsTrap: boolean;
  /** VCPU_INJECT_EXCEPTION while single-stepping. */
  readonly injectWhileStepping: 'busy' | 'delay';
  /** What VCPU_CONTROL_SINGLESTEP looks at first; undefined: the permission does not matter. */
  readonly singlestepChecksFirst: 'permission' | 'padding' | undefined;
  readonly singlestepUnsupported: number;
  /** SINGLESTEP events have to be enabled with VCPU_CONTROL_EVENTS. */
  readonly singlestepNeedsEvent: boolean;
  /** The action "crash": the vCPU shuts down, or the VMM gets SIGTERM. */
  readonly crash: 'shutdown' | 'kill';
  /** The receiver logs when it starts and ends. */
  readonly logsHook: boolean;
}

export const RULES: Readonly<Record<DialectName, Rules>> = {
  v7: {
    headerPadding: 'close',
    pausePadding: 'close',
    pauseNotAllowed: 'close',
    strictEnable: false,
    checkUnknown: KVM_EINVAL,
    checkTable: { commands: 64, events: 14 },
    checkKnowsEventMessage: false,
    enableBitFirst: true,
    interceptionError: KVM_EOPNOTSUPP,
    shortPageAccess: KVM_EINVAL,
    frameMissing: 'accept',
    shortGetRegisters: KVM_EINVAL,
    largeGetRegisters: KVM_ENOMEM,
    strictMsrs: false,
    wholeRegisters: false,
    missingXsaveHeader: KVM_EINVAL,
    injectNeedsTrap: false,
    injectWhileStepping: 'delay',
    singlestepChecksFirst: undefined,
    singlestepUnsupported: KVM_EINVAL,
    singlestepNeedsEvent: true,
    crash: 'kill',
    logsHook: true,
  },
  v9: {
    headerPadding: KVM_EINVAL,
    pausePadding: KVM_EINVAL,
    pauseNotAllowed: KVM_ERRNO.KVM_EPERM,
    strictEnable: true,
    checkUnknown: KVM_ENOENT,
    checkTable: { commands: 0, events: 0 },
    checkKnowsEventMessage: true,
    enableBitFirst: true,
    interceptionError: undefined,
    shortPageAccess: KVM_EINVAL,
    frameMissing: 'visible',
    shortGetRegisters: 'close',
    largeGetRegisters: KVM_EINVAL,
    strictMsrs: true,
    wholeRegisters: false,
    missingXsaveHeader: 'close',
    injectNeedsTrap: true,
    injectWhileStepping: 'delay',
    singlestepChecksFirst: 'padding',
    singlestepUnsupported: KVM_EOPNOTSUPP,
    singlestepNeedsEvent: false,
    crash: 'kill',
    logsHook: false,
  },
  v12: {
    headerPadding: KVM_EINVAL,
    pausePadding: KVM_EINVAL,
    pauseNotAllowed: KVM_ERRNO.KVM_EPERM,
    strictEnable: true,
    checkUnknown: KVM_ENOENT,
    checkTable: { commands: 0, events: 0 },
    checkKnowsEventMessage: false,
    enableBitFirst: false,
    interceptionError: undefined,
    shortPageAccess: 'close',
    frameMissing: 'error',
    shortGetRegisters: KVM_EINVAL,
    largeGetRegisters: KVM_EINVAL,
    strictMsrs: true,
    wholeRegisters: true,
    missingXsaveHeader: KVM_EINVAL,
    injectNeedsTrap: true,
    injectWhileStepping: 'busy',
    singlestepChecksFirst: 'permission',
    singlestepUnsupported: KVM_EOPNOTSUPP,
    singlestepNeedsEvent: false,
    crash: 'shutdown',
    logsHook: false,
  },
};

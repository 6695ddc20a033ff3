import { KVM_ERRNO } from '../abi/errno.ts';
import { regsOf, STATE_SIZE, sregsOf } from '../abi/state.ts';
import { KVM_XSAVE_SIZE } from '../abi/x86.ts';
import { type Awaitable, forEachThen, then } from '../awaitable.ts';
import { type InterceptedCr, requireCapability, translate } from '../machine/index.ts';
import { ERROR_SIZE, MAX_PAYLOAD, type Replies } from '../wire/index.ts';
import type { VcpuContext } from './context.ts';
import type { VcpuHandler, VcpuHandlers } from './handlers.ts';
import { controlCr, controlEvent, controlMsr } from './interceptions.ts';
import { bytesOf, bytesReply, refuse } from './outcome.ts';

const { KVM_EBUSY, KVM_EINVAL, KVM_ENOENT, KVM_EOPNOTSUPP, KVM_EPERM } = KVM_ERRNO;

const REGISTERS_REPLY_SIZE = 472;
const MSR_ENTRY_SIZE = 16;
const VCPU_HEADER_SIZE = 8;
/** All-ones on the wire: no translation. */
const NO_GPA = 2 ** 64;

const controlEvents: VcpuHandler<'VCPU_CONTROL_EVENTS'> = (vcpu, { body, padding }) => {
  const { hook } = vcpu;
  const { event_id, enable } = body!;
  if (padding || (hook.rules.strictEnable && enable > 1)) return KVM_EINVAL;
  const event = hook.dialect.eventById(event_id);
  if (!event || event.controlledBy === 'vm') return KVM_EINVAL;
  if (!hook.permissions.eventAllowed(event_id)) return KVM_EPERM;
  return controlEvent(vcpu, event.name, enable !== 0);
};

const getRegisters: VcpuHandler<'VCPU_GET_REGISTERS'> = (vcpu, { body, padding }) => {
  const { rules } = vcpu.hook;
  if (!body) return refuse(rules.shortGetRegisters, 'VCPU_GET_REGISTERS is shorter than it announces');
  if (padding) return KVM_EINVAL;
  const { msrs_idx } = body;
  if (ERROR_SIZE + REGISTERS_REPLY_SIZE + MSR_ENTRY_SIZE * msrs_idx.length > MAX_PAYLOAD) {
    return rules.largeGetRegisters;
  }
  const state = new Uint8Array(STATE_SIZE);
  return then(vcpu.vcpu.readState(state), () =>
    then(readMsrs(vcpu, msrs_idx), (msrs) => {
      if (!msrs) return KVM_EINVAL;
      const reply: Replies['VCPU_GET_REGISTERS'] = {
        mode: state[0]!,
        regs: regsOf(state),
        sregs: sregsOf(state),
        nmsrs: msrs.length,
        msrs,
      };
      return reply;
    }),
  );
};

type MsrEntries = Replies['VCPU_GET_REGISTERS']['msrs'];

/** Reads MSRs in order; what follows one that cannot be read stays 0, or makes it all fail. */
function readMsrs(vcpu: VcpuContext, indices: readonly number[]): Awaitable<MsrEntries | undefined> {
  const entries = indices.map((index) => ({ index, reserved: 0, data: 0n }));
  let readable = true;
  const done = forEachThen(entries, (entry) =>
    then(vcpu.vcpu.readMsr(entry.index), (value) => {
      readable = value !== undefined;
      if (value !== undefined) entry.data = value;
      return readable;
    }),
  );
  return then(done, () => (readable || !vcpu.hook.rules.strictMsrs ? entries : undefined));
}

const setRegisters: VcpuHandler<'VCPU_SET_REGISTERS'> = (vcpu, { body, payloadSize }) => {
  const { regs } = body!;
  if (vcpu.hook.rules.wholeRegisters && payloadSize < VCPU_HEADER_SIZE + regs.length) return KVM_EINVAL;
  if (!vcpu.waiting) return KVM_EOPNOTSUPP;
  requireCapability(vcpu.hook.machine.capabilities, 'set-registers');
  vcpu.delayRegisters(regs);
  return 0;
};

const getCpuid: VcpuHandler<'VCPU_GET_CPUID'> = ({ vcpu }, { body }) =>
  then(vcpu.cpuid(body!.function, body!.index), (leaf) => leaf ?? KVM_ENOENT);

const controlCrCommand: VcpuHandler<'VCPU_CONTROL_CR'> = (vcpu, { body, padding }) => {
  const { cr, enable } = body!;
  if (padding || (vcpu.hook.rules.strictEnable && enable > 1)) return KVM_EINVAL;
  if (cr !== 0 && cr !== 3 && cr !== 4) return KVM_EINVAL;
  return controlCr(vcpu, cr satisfies InterceptedCr, enable !== 0);
};

/** The two ranges of the MSR permission bitmap. */
function isControllableMsr(msr: number): boolean {
  return msr <= 0x1fff || (msr >= 0xc0000000 && msr <= 0xc0001fff);
}

const controlMsrCommand: VcpuHandler<'VCPU_CONTROL_MSR'> = (vcpu, { body, padding }) => {
  const { msr, enable } = body!;
  if (padding || (vcpu.hook.rules.strictEnable && enable > 1)) return KVM_EINVAL;
  if (!isControllableMsr(msr)) return KVM_EINVAL;
  return controlMsr(vcpu, msr, enable !== 0);
};

const injectException: VcpuHandler<'VCPU_INJECT_EXCEPTION'> = (vcpu, { body, padding }) => {
  const { hook } = vcpu;
  if (hook.rules.injectNeedsTrap && !hook.permissions.eventNameAllowed('TRAP')) return KVM_EPERM;
  if (padding) return KVM_EINVAL;
  const { nr: vector, error_code: errorCode, address } = body!;
  if (vcpu.injecting) return KVM_EBUSY;
  if (vcpu.singlestep && hook.rules.injectWhileStepping === 'busy') return KVM_EBUSY;
  requireCapability(hook.machine.capabilities, 'inject');
  vcpu.injecting = true;
  const exception = { vector, errorCode, address };
  if (vcpu.singlestep) {
    vcpu.heldException = exception;
    return 0;
  }
  return then(vcpu.vcpu.inject(exception), () => 0);
};

const controlSinglestep: VcpuHandler<'VCPU_CONTROL_SINGLESTEP'> = (vcpu, { body, padding }) => {
  const { rules, permissions, machine } = vcpu.hook;
  const allowed = rules.singlestepChecksFirst === undefined || permissions.eventNameAllowed('SINGLESTEP');
  const malformed = padding || body!.enable > 1;
  if (rules.singlestepChecksFirst === 'permission' && !allowed) return KVM_EPERM;
  if (malformed) return KVM_EINVAL;
  if (!allowed) return KVM_EPERM;
  if (machine.capabilities.singlestep !== true) return rules.singlestepUnsupported;
  const enable = body!.enable === 1;
  if (vcpu.singlestep === enable) return 0;
  const trap = { kind: 'singlestep', vcpu: vcpu.vcpu } as const;
  return then(enable ? machine.arm(trap) : machine.disarm(trap), () => {
    vcpu.singlestep = enable;
    const held = vcpu.heldException;
    vcpu.heldException = undefined;
    return held && !enable ? then(vcpu.vcpu.inject(held), () => 0) : 0;
  });
};

const getXcr: VcpuHandler<'VCPU_GET_XCR'> = ({ vcpu }, { body, padding }) => {
  if (padding || body!.xcr !== 0) return KVM_EINVAL;
  return then(vcpu.xcr0(), (value) => ({ value }));
};

const getXsave: VcpuHandler<'VCPU_GET_XSAVE'> = ({ vcpu }) => {
  const reply = bytesReply(KVM_XSAVE_SIZE);
  return then(vcpu.readXsave(bytesOf(reply)), () => reply);
};

const setXsave: VcpuHandler<'VCPU_SET_XSAVE'> = ({ vcpu, hook }, { body, payloadSize }) => {
  const { data } = body!;
  if (payloadSize < VCPU_HEADER_SIZE) {
    return refuse(hook.rules.missingXsaveHeader, 'VCPU_SET_XSAVE has no vCPU header');
  }
  const whole = hook.rules.wholeRegisters;
  if (whole ? data.length < KVM_XSAVE_SIZE : data.length > KVM_XSAVE_SIZE) return KVM_EINVAL;
  const area = new Uint8Array(KVM_XSAVE_SIZE);
  area.set(data.subarray(0, KVM_XSAVE_SIZE));
  return then(vcpu.writeXsave(area), (accepted) => (accepted ? 0 : KVM_EINVAL));
};

const translateGva: VcpuHandler<'VCPU_TRANSLATE_GVA'> = ({ vcpu, hook }, { body }) => {
  const state = new Uint8Array(STATE_SIZE);
  return then(vcpu.readState(state), () =>
    then(translate(hook.machine.memory, state, body!.gva), (gpa) => ({ gpa: gpa ?? NO_GPA })),
  );
};

/** The commands that run while the vCPU is outside the guest, views excepted. */
export const VCPU_COMMANDS = {
  VCPU_GET_INFO: ({ vcpu }) => ({ tsc_speed: BigInt(Math.round(vcpu.tscHz)) }),
  VCPU_CONTROL_EVENTS: controlEvents,
  VCPU_GET_REGISTERS: getRegisters,
  VCPU_SET_REGISTERS: setRegisters,
  VCPU_GET_CPUID: getCpuid,
  VCPU_CONTROL_CR: controlCrCommand,
  VCPU_INJECT_EXCEPTION: injectException,
  VCPU_GET_XCR: getXcr,
  VCPU_GET_XSAVE: getXsave,
  VCPU_SET_XSAVE: setXsave,
  VCPU_GET_MTRR_TYPE: ({ vcpu }, { body }) => then(vcpu.mtrrType(body!.gpa), (type) => ({ type })),
  VCPU_CONTROL_MSR: controlMsrCommand,
  VCPU_CONTROL_SINGLESTEP: controlSinglestep,
  VCPU_TRANSLATE_GVA: translateGva,
} satisfies Partial<VcpuHandlers>;

import { KVM_ERRNO } from '../abi/errno.ts';
import { type Awaitable, attempt, forEachThen, then } from '../awaitable.ts';
import { type CapabilityName, type InterceptedCr, requireCapability, type Trap } from '../machine/index.ts';
import type { EventName } from '../wire/index.ts';
import type { VcpuContext } from './context.ts';
import { errnoOf } from './outcome.ts';

/** Events whose interception is installed when they are enabled, with the trap that does it. */
const TRAPS: { readonly [N in EventName]?: 'breakpoint' | 'descriptor' | 'hypercall' | 'xsetbv' | 'cpuid' } =
  {
    BREAKPOINT: 'breakpoint',
    DESCRIPTOR: 'descriptor',
    HYPERCALL: 'hypercall',
    XSETBV: 'xsetbv',
    CPUID: 'cpuid',
  };

/** Whether two traps of this kind at once are an error: only one party can have #BP. */
const EXCLUSIVE: ReadonlySet<EventName> = new Set(['BREAKPOINT']);

function change(vcpu: VcpuContext, trap: Trap, enable: boolean): Awaitable<void> {
  const { machine } = vcpu.hook;
  return enable ? machine.arm(trap) : machine.disarm(trap);
}

/**
 * VCPU_CONTROL_EVENTS after its checks: installs or removes the interception and changes the enable bit,
 * in the order of the dialect. Returns 0 or an error number.
 */
export function controlEvent(vcpu: VcpuContext, name: EventName, enable: boolean): Awaitable<number> {
  const { events, hook } = vcpu;
  const { enableBitFirst, interceptionError } = hook.rules;
  const was = events.has(name);
  const setBit = (): void => {
    if (enable) events.add(name);
    else events.delete(name);
  };
  if (enableBitFirst) setBit();
  const intercepted = attempt(
    () => intercept(vcpu, name, was, enable),
    (error) => errnoOf(error, hook.log, `the interception of ${name}`),
  );
  return then(intercepted, (errno) => {
    if (errno === 0) {
      if (!enableBitFirst) setBit();
      return 0;
    }
    return interceptionError ?? errno;
  });
}

function intercept(vcpu: VcpuContext, name: EventName, was: boolean, enable: boolean): Awaitable<number> {
  if (was === enable) return EXCLUSIVE.has(name) ? KVM_ERRNO.KVM_EBUSY : 0;
  if (name === 'CR') return then(changeAll(vcpu, [...vcpu.crs], crTrap, enable), () => 0);
  if (name === 'MSR') return then(changeAll(vcpu, [...vcpu.msrs], msrTrap, enable), () => 0);
  const kind = TRAPS[name];
  if (!kind) return 0;
  const capability: CapabilityName = kind === 'cpuid' ? 'cpuid-event' : kind;
  if (enable) requireCapability(vcpu.hook.machine.capabilities, capability);
  return then(change(vcpu, { kind, vcpu: vcpu.vcpu }, enable), () => 0);
}

const crTrap = ({ vcpu }: VcpuContext, cr: InterceptedCr): Trap => ({ kind: 'cr', vcpu, cr });
const msrTrap = ({ vcpu }: VcpuContext, msr: number): Trap => ({ kind: 'msr', vcpu, msr });

function changeAll<T>(
  vcpu: VcpuContext,
  selected: readonly T[],
  trapOf: (vcpu: VcpuContext, register: T) => Trap,
  enable: boolean,
): Awaitable<void> {
  return forEachThen(selected, (register) => change(vcpu, trapOf(vcpu, register), enable));
}

/** A register is trapped while it is selected and its event is enabled. */
function select<T>(
  vcpu: VcpuContext,
  selected: Set<T>,
  register: T,
  enable: boolean,
  event: EventName,
  trap: Trap,
): Awaitable<number> {
  if (selected.has(register) === enable) return 0;
  const done = vcpu.events.has(event) ? change(vcpu, trap, enable) : undefined;
  return then(done, () => {
    if (enable) selected.add(register);
    else selected.delete(register);
    return 0;
  });
}

/** VCPU_CONTROL_CR after its checks. */
export function controlCr(vcpu: VcpuContext, cr: InterceptedCr, enable: boolean): Awaitable<number> {
  if (enable) requireCapability(vcpu.hook.machine.capabilities, 'cr');
  return select(vcpu, vcpu.crs, cr, enable, 'CR', crTrap(vcpu, cr));
}

/** VCPU_CONTROL_MSR after its checks. */
export function controlMsr(vcpu: VcpuContext, msr: number, enable: boolean): Awaitable<number> {
  if (enable) requireCapability(vcpu.hook.machine.capabilities, 'msr');
  return select(vcpu, vcpu.msrs, msr, enable, 'MSR', msrTrap(vcpu, msr));
}

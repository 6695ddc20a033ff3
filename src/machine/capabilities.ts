import { KvmiError } from '../error.ts';
import { ACCESS, type Trap } from './stops.ts';

/**
 * What a machine may or may not be able to do. A driver names each one, with the reason when it is
 * absent; nothing else decides what works.
 *
 * | name | allows |
 * |---|---|
 * | memory-write | `PhysicalMemory.write` |
 * | registers, set-registers | `Vcpu.readState`, `Vcpu.writeRegisters` |
 * | msrs | `Vcpu.readMsr` beyond those in the state block |
 * | cpuid, xcr, xsave, set-xsave, mtrr | the `Vcpu` method of that name |
 * | inject | `Vcpu.inject` and the `trap` stop |
 * | pause | `Vcpu.request` |
 * | breakpoint, cr, msr, xsetbv, descriptor, hypercall, cpuid-event, singlestep | the trap of that name |
 * | page-read, page-write, page-execute | denying that access in a page trap |
 * | create-vcpu | `MachineHandler.vcpuCreated` |
 * | pre-unhook | `MachineHandler.preUnhook` |
 * | crash | the `crash` answer and `Machine.kill` |
 * | views, sub-page, virtualization-exception | the optional parts of dialect v7 |
 * | frames | adding and removing guest frames at run time |
 */
export const CAPABILITY_NAMES = [
  'memory-write',
  'registers',
  'set-registers',
  'msrs',
  'cpuid',
  'xcr',
  'xsave',
  'set-xsave',
  'mtrr',
  'inject',
  'pause',
  'breakpoint',
  'cr',
  'msr',
  'xsetbv',
  'descriptor',
  'hypercall',
  'cpuid-event',
  'singlestep',
  'page-read',
  'page-write',
  'page-execute',
  'create-vcpu',
  'pre-unhook',
  'crash',
  'views',
  'sub-page',
  'virtualization-exception',
  'frames',
] as const;

export type CapabilityName = (typeof CAPABILITY_NAMES)[number];

/** `true`, or why not: a sentence that names the part that is missing. */
export type Support = true | string;

export type Capabilities = Readonly<Record<CapabilityName, Support>>;

/** Asks `support` about each capability: `true`, or the reason why it is absent. */
export function capabilitiesOf(support: (name: CapabilityName) => Support): Capabilities {
  return Object.fromEntries(CAPABILITY_NAMES.map((name) => [name, support(name)])) as Record<
    CapabilityName,
    Support
  >;
}

/** A machine was asked for something that it cannot do. */
export class CapabilityError extends KvmiError {
  readonly capability: CapabilityName;

  constructor(capability: CapabilityName, reason: string) {
    super('E_UNSUPPORTED', `${capability} is not available: ${reason}`, { data: { capability, reason } });
    this.name = 'CapabilityError';
    this.capability = capability;
  }
}

/** Throws a {@link CapabilityError} with the machine's reason unless it can do `name`. */
export function requireCapability(capabilities: Capabilities, name: CapabilityName): void {
  const support = capabilities[name];
  if (support !== true) throw new CapabilityError(name, support);
}

/** What denying an access in a page trap takes. */
const DENIED: readonly (readonly [access: number, CapabilityName])[] = [
  [ACCESS.read, 'page-read'],
  [ACCESS.write, 'page-write'],
  [ACCESS.execute, 'page-execute'],
];

function capabilitiesFor(trap: Trap): readonly CapabilityName[] {
  if (trap.kind !== 'page') return [trap.kind === 'cpuid' ? 'cpuid-event' : trap.kind];
  return DENIED.filter(([access]) => (trap.access & access) === 0).map(([, name]) => name);
}

/** Throws a {@link CapabilityError} with the machine's reason unless it can do everything that `trap` asks for. */
export function requireTrap(capabilities: Capabilities, trap: Trap): void {
  for (const name of capabilitiesFor(trap)) requireCapability(capabilities, name);
}

import { type Capabilities, type CapabilityName, capabilitiesOf } from '../../machine/index.ts';

/** How the processor's virtualization is driven on this host. */
export type Flavour = 'vmx' | 'svm' | 'pvm' | 'unknown';

const NO_EXIT =
  'stock KVM handles it without leaving the guest to user space; set a breakpoint on the instruction, or single-step';

const ABSENT: { readonly [N in CapabilityName]?: string } = {
  cr: `control registers: ${NO_EXIT}`,
  xsetbv: `XSETBV: ${NO_EXIT}`,
  descriptor: `descriptor tables: ${NO_EXIT}`,
  hypercall: `hypercalls: ${NO_EXIT}`,
  'cpuid-event': `CPUID: ${NO_EXIT}`,
  views: 'stock KVM has one view of guest memory',
  'sub-page': 'stock KVM does not expose sub-page permissions',
  'virtualization-exception': 'stock KVM does not expose it',
  frames: 'memory slots belong to the VMM',
  'pre-unhook': 'only the device manager knows when it is about to take the machine away',
};

const ABSENT_ON_PVM: typeof ABSENT = {
  breakpoint:
    'not built: the PVM flavour of KVM does not report int3 as such, but ends KVM_RUN with an internal error that this driver does not look into',
};

/** What a VM on stock KVM can do on this host. */
export function kvmCapabilities(flavour: Flavour): Capabilities {
  const absent = flavour === 'pvm' ? { ...ABSENT, ...ABSENT_ON_PVM } : ABSENT;
  return capabilitiesOf((name) => absent[name] ?? true);
}

const AWAY =
  'the page is taken out of the memory of the VM, which can harm it for some milliseconds when this process is killed, and whenever the VMM changes its memory; allow it with the option unsafe (--unsafe)';

/** What is not available unless it is allowed. */
export const UNSAFE: { readonly [N in CapabilityName]?: string } = {
  'page-read': AWAY,
  'page-execute': AWAY,
};

/** With several vCPUs the filter of MSRs cannot be off whenever one of them is in its VMM. */
export const UNSAFE_MSR =
  'with several vCPUs a trapped MSR can harm the VMM for some milliseconds when this process is killed; allow it with the option unsafe (--unsafe)';

const CONFINED =
  'a seccomp filter of the VMM forbids what has to be done in it when this process is killed: the VMM would be killed, too; allow it with the option unsafe (--unsafe)';

/** What is not available, unless it is allowed, when a VMM confines the threads of its vCPUs. */
export const UNSAFE_WHEN_CONFINED: { readonly [N in CapabilityName]?: string } = {
  singlestep: CONFINED,
  breakpoint: CONFINED,
  msr: CONFINED,
  'page-write': CONFINED,
};

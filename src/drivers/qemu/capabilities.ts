import type { Capabilities, Support } from '../../machine/capabilities.ts';

/** What decides on the capabilities of a QEMU machine. */
export interface QemuFacts {
  /** TCG interprets; otherwise the accelerator is KVM (or another hypervisor). */
  readonly tcg: boolean;
  /** Why QEMU's device state cannot be used as the source of registers; undefined when it can. */
  readonly noDeviceState: string | undefined;
  /** The process of the VM on this host, if it was found. */
  readonly pid: number | undefined;
}

const GDBSTUB = "QEMU's gdbstub";

/** What this driver can do, and why not where it cannot. */
export function qemuCapabilities({ tcg, noDeviceState, pid }: QemuFacts): Capabilities {
  const stateful: Support = noDeviceState ?? true;
  const tooFew = (what: string) =>
    `${GDBSTUB} has four hardware breakpoints, fewer than there are places of ${what}`;
  const notStopped = (what: string) => `${GDBSTUB} does not stop at ${what}`;
  return {
    'memory-write': true,
    registers: true,
    'set-registers': true,
    msrs: stateful,
    cpuid: true,
    xcr: stateful,
    xsave: stateful,
    'set-xsave': `${GDBSTUB} writes no AVX registers and no x87 tags`,
    mtrr: stateful,
    inject: true,
    pause: true,
    breakpoint: true,
    cr: tcg || tooFew('writes of control registers'),
    msr: tcg || tooFew('wrmsr'),
    xsetbv: tcg ? stateful : tooFew('xsetbv'),
    descriptor: notStopped('sgdt, sidt, sldt and str, which user space may execute, too'),
    hypercall: notStopped('hypercall instructions, which user space may execute, too'),
    'cpuid-event': notStopped('cpuid, which user space may execute, too'),
    singlestep: true,
    'page-read': watchReason(tcg),
    'page-write': watchReason(tcg),
    'page-execute': `${GDBSTUB} watches no execution of pages`,
    'create-vcpu': 'QEMU sends no event when a vCPU is plugged in',
    'pre-unhook': true,
    crash: pid === undefined ? "QEMU's process was not found on this host" : true,
    views: 'QEMU has no alternative views of guest memory',
    'sub-page': 'QEMU has no sub-page write protection',
    'virtualization-exception': 'QEMU does not emulate #VE',
    frames: 'QEMU adds and removes no single frames',
  };
}

function watchReason(tcg: boolean): string {
  return tcg
    ? `${GDBSTUB} watches virtual addresses, reports after the access, and misses accesses when vCPUs run in parallel`
    : `${GDBSTUB} has four debug registers of at most 8 bytes each, and reports after the access`;
}

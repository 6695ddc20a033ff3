import { accessSync, constants, existsSync } from 'node:fs';
import { type Check, type Finding, ok } from './check.ts';

/** Kernel modules that drive the hardware, and what they are. */
const FLAVOURS: Readonly<Record<string, string>> = {
  kvm_intel: 'Intel VMX',
  kvm_amd: 'AMD SVM',
  kvm_pvm: 'PVM: a software flavour, which runs 64-bit kernels only in part',
};

function flavour(): string {
  const loaded = Object.keys(FLAVOURS).filter((module) => existsSync(`/sys/module/${module}`));
  return loaded.map((module) => FLAVOURS[module]).join(', ') || 'of an unknown flavour';
}

function deviceFinding(): Finding {
  if (!existsSync('/dev/kvm')) {
    return {
      severity: 'info',
      found: 'there is no /dev/kvm',
      remedy:
        'modprobe kvm_intel or kvm_amd; in a VM, enable nested virtualisation. QEMU works without it (TCG).',
    };
  }
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK);
  } catch {
    return {
      severity: 'warning',
      found: '/dev/kvm is there, but this user may not open it',
      remedy: 'sudo usermod -aG kvm "$USER", and log in again.',
    };
  }
  return ok(`/dev/kvm, ${flavour()}`);
}

export const KVM_CHECKS: readonly Check[] = [
  { name: 'kvm', enables: 'VMs that run on KVM', examine: deviceFinding },
];

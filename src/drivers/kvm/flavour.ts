import { statSync } from 'node:fs';
import type { Flavour } from './capabilities.ts';

const MODULES: readonly (readonly [module: string, flavour: Flavour])[] = [
  ['kvm_pvm', 'pvm'],
  ['kvm_intel', 'vmx'],
  ['kvm_amd', 'svm'],
];

/** Which vendor module drives KVM here. */
export function kvmFlavour(): Flavour {
  const found = MODULES.find(([module]) => statSync(`/sys/module/${module}`, { throwIfNoEntry: false }));
  return found?.[1] ?? 'unknown';
}

import type { FoundMachine } from './found.ts';
import { findKvm } from './kvm-finder.ts';
import { findQemu } from './qemu-finder.ts';

/** Every VM of this host. */
export async function findMachines(): Promise<FoundMachine[]> {
  const [qemu, kvm] = await Promise.all([findQemu(), findKvm()]);
  return mergeFound(qemu, kvm);
}

/**
 * One row for each VM. A QEMU that is hooked through its monitor is shown as that; where there is no way through
 * the monitor, there may be one through KVM.
 */
export function mergeFound(qemu: readonly FoundMachine[], kvm: readonly FoundMachine[]): FoundMachine[] {
  const throughKvm = new Map(kvm.map((vm) => [vm.pid, vm]));
  const pids = new Set(qemu.map(({ pid }) => pid));
  return [
    ...qemu.map((vm) => (vm.target === undefined ? withWay(vm, throughKvm.get(vm.pid)) : vm)),
    ...kvm.filter(({ pid }) => !pids.has(pid)),
  ];
}

function withWay(vm: FoundMachine, other: FoundMachine | undefined): FoundMachine {
  if (!other) return vm;
  if (other.target !== undefined)
    return { ...vm, target: other.target, reason: undefined, blocked: undefined, remedy: undefined };
  const reason = `${vm.reason}; through KVM: ${other.reason}`;
  return { ...vm, reason, blocked: vm.blocked ?? other.blocked };
}

/** How to name `vm` without a doubt. */
export function handleOf(vm: FoundMachine): string {
  return vm.pid !== undefined ? String(vm.pid) : (vm.uuid ?? vm.target ?? vm.name);
}

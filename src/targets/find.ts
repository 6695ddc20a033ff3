import { findKvm } from './kvm-finder.ts';
import { findQemu } from './qemu-finder.ts';

/** A VM that runs on this host, whether kvmi can hook it or not. */
export interface FoundMachine {
  readonly pid: number | undefined;
  readonly name: string;
  /** As text, with dashes; undefined when the VMM does not say. */
  readonly uuid: string | undefined;
  readonly vcpus: number | undefined;
  /** Bytes of guest memory. */
  readonly memory: number | undefined;
  /** The program that runs it. */
  readonly vmm: string;
  /** `tcg`, `kvm`, …; undefined when it is not known. */
  readonly accelerator: string | undefined;
  /** How to open it: `qemu:/run/vm.qmp`, `kvm:4711`. Undefined: there is no way, see `reason`. */
  readonly target: string | undefined;
  readonly reason: string | undefined;
}

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
  if (other.target !== undefined) return { ...vm, target: other.target, reason: undefined };
  return { ...vm, reason: `${vm.reason}; through KVM: ${other.reason}` };
}

/** How to name `vm` without a doubt. */
export function handleOf(vm: FoundMachine): string {
  return vm.pid !== undefined ? String(vm.pid) : (vm.uuid ?? vm.target ?? vm.name);
}

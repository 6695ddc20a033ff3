import { findQemu } from './drivers/qemu-finder.ts';

/** A VM that runs on this host, whether kvmi can hook it or not. */
export interface FoundVm {
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
  /** How to open it: `qemu:/run/vm.qmp`. Undefined: there is no way, see `reason`. */
  readonly target: string | undefined;
  readonly reason: string | undefined;
}

/** A way to find VMs. Finders are independent: what one cannot see another may. */
type Finder = () => Promise<FoundVm[]>;

/** Every finder; a driver adds its own here. */
const FINDERS: readonly Finder[] = [findQemu];

/** Every VM of this host. */
export async function discover(): Promise<FoundVm[]> {
  const found = await Promise.all(FINDERS.map((find) => find()));
  return found.flat();
}

/** How to name `vm` without a doubt. */
export function handleOf(vm: FoundVm): string {
  return vm.pid !== undefined ? String(vm.pid) : (vm.uuid ?? vm.target ?? vm.name);
}

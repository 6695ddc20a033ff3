import type { KvmMachineRow } from '../drivers/kvm/index.ts';
import type { FoundMachine } from './found.ts';

/** Every VM on /dev/kvm whose process may be looked into; elsewhere than on Linux none. */
export async function findKvm(): Promise<FoundMachine[]> {
  if (process.platform !== 'linux') return [];
  const { findKvmMachines } = await import('../drivers/kvm/find.ts');
  const { programOf } = await import('../drivers/kvm/identity.ts');
  const found = findKvmMachines();
  const several = (pid: number): boolean => found.filter((row) => row.pid === pid).length > 1;
  return found.map((row) => foundMachine(row, programOf(row.pid), several(row.pid)));
}

function foundMachine(row: KvmMachineRow, vmm: string, several: boolean): FoundMachine {
  const { pid, vm, name, vcpus, memory, hookable, remedy } = row;
  const way = `kvm:${pid}${several ? `:${vm}` : ''}`;
  return {
    pid,
    name,
    uuid: undefined,
    vcpus,
    memory,
    vmm,
    accelerator: 'kvm',
    ...(hookable === true
      ? { target: way, reason: undefined }
      : { target: undefined, reason: hookable, blocked: way, remedy }),
  };
}

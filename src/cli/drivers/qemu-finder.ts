import type { FoundVm } from '../discover.ts';

/** Every QEMU of this host; elsewhere than on Linux none. */
export async function findQemu(): Promise<FoundVm[]> {
  if (process.platform !== 'linux') return [];
  const { findQemuMachines } = await import('../../drivers/qemu/find.ts');
  return findQemuMachines().map(({ qmp, ...machine }) => ({
    ...machine,
    vmm: 'QEMU',
    target: qmp === undefined ? undefined : `qemu:${qmp}`,
  }));
}

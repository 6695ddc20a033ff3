import type { FoundMachine } from './found.ts';

/** Every QEMU of this host, those of libvirt among them; elsewhere than on Linux none. */
export async function findQemu(): Promise<FoundMachine[]> {
  if (process.platform !== 'linux') return [];
  const { findQemuMachines } = await import('../drivers/qemu/discover.ts');
  return findQemuMachines().map(({ address, ...machine }) => ({
    ...machine,
    vmm: 'QEMU',
    target: address && ('qmp' in address ? `qemu:${address.qmp}` : `libvirt:${address.libvirt}`),
  }));
}

import type { QmpAddress } from '../../drivers/qemu/open-qmp.ts';
import type { FoundVm } from '../discover.ts';

/** Every QEMU of this host; elsewhere than on Linux none. */
export async function findQemu(): Promise<FoundVm[]> {
  if (process.platform !== 'linux') return [];
  const { findQemuMachines } = await import('../../drivers/qemu/discover.ts');
  return findQemuMachines().map(({ address, ...machine }) => ({
    ...machine,
    vmm: 'QEMU',
    target: address && targetOf(address),
  }));
}

function targetOf(address: QmpAddress): string {
  return 'qmp' in address ? `qemu:${address.qmp}` : `libvirt:${address.libvirt}`;
}

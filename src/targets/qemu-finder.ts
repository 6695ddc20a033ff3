import type { FoundMachine } from './found.ts';

/** Every QEMU of this host, those of libvirt among them; elsewhere than on Linux none. */
export async function findQemu(): Promise<FoundMachine[]> {
  if (process.platform !== 'linux') return [];
  const { findQemuMachines } = await import('../drivers/qemu/discover.ts');
  const { damagedProcesses } = await import('../drivers/qemu/guard/left-behind.ts');
  const damaged = damagedProcesses();
  return findQemuMachines().map(({ address, ...machine }) => {
    const way = address && ('qmp' in address ? `qemu:${address.qmp}` : `libvirt:${address.libvirt}`);
    const blocked = machine.reason !== undefined;
    const damage = damaged.has(machine.pid) && { damaged: true };
    return {
      ...machine,
      ...damage,
      vmm: 'QEMU',
      ...(blocked ? { target: undefined, blocked: way } : { target: way }),
    };
  });
}

import type { QmpConnection } from '../../src/drivers/qemu/qmp.ts';

/** Whether QEMU has a gdbstub with somebody at its other end. */
export async function isStubUsed(monitor: QmpConnection): Promise<boolean> {
  const devices = (await monitor.execute('query-chardev')) as { label: string; filename: string }[];
  return devices.some(({ label, filename }) => label === 'gdb' && !filename.startsWith('disconnected:'));
}

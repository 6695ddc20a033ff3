import { KvmiError } from '../../error.ts';
import { findQemuMachines } from './discover.ts';
import { QemuMachine } from './machine.ts';
import { openQmp, type QmpAddress } from './open-qmp.ts';

/** How a QEMU machine is named: by its QMP socket, by its libvirt domain, or by its process on this host. */
export type QemuTarget = QmpAddress | { readonly pid: number };

/**
 * Opens the QEMU machine that `target` names, without touching its guest. Errors: E_QMP_CONNECT, E_BUSY (something else
 * than kvmi has its QMP socket), E_LIBVIRT, E_NO_MACHINE (no such process, or one that cannot be hooked, with the reason).
 */
export async function openQemu(target: QemuTarget): Promise<QemuMachine> {
  const address = 'pid' in target ? addressOf(target.pid) : target;
  return QemuMachine.open(await openQmp(address), address);
}

function addressOf(pid: number): QmpAddress {
  const found = findQemuMachines().find((machine) => machine.pid === pid);
  if (found?.address) return found.address;
  const why = found?.reason ?? 'it is not a QEMU system emulator';
  throw new KvmiError('E_NO_MACHINE', `process ${pid} cannot be hooked: ${why}`, { data: { pid } });
}

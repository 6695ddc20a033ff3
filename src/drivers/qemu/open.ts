import { KvmiError } from '../../error.ts';
import { findQemuMachines } from './discover.ts';
import type { LeftBehind } from './guard/left-behind.ts';
import { QemuMachine } from './machine.ts';
import { openQmp, type QmpAddress } from './open-qmp.ts';

/** How a QEMU machine is named: by its QMP socket, by its libvirt domain, or by its process on this host. */
export type QemuTarget = QmpAddress | { readonly pid: number };

/**
 * Opens the QEMU machine that `target` names, without touching its guest, but that what a kvmi which was killed has left
 * in it is undone first: `report` is told what became of it. Errors: E_QMP_CONNECT, E_BUSY (something else
 * than kvmi has its QMP socket), E_LIBVIRT, E_NO_MACHINE (no such process, or one that cannot be hooked, with the reason).
 */
export async function openQemu(
  target: QemuTarget,
  report: (left: LeftBehind) => void = () => {},
): Promise<QemuMachine> {
  const address = 'pid' in target ? addressOf(target.pid) : target;
  return QemuMachine.open(await openQmp(address), address, report);
}

function addressOf(pid: number): QmpAddress {
  const found = findQemuMachines().find((machine) => machine.pid === pid);
  if (found?.address) return found.address;
  const why = found?.reason ?? 'it is not a QEMU system emulator';
  throw new KvmiError('E_NO_MACHINE', `process ${pid} cannot be hooked: ${why}`, { data: { pid } });
}

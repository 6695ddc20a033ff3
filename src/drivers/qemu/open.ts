import { QemuMachine } from './machine.ts';
import { openQmp, type QmpAddress } from './open-qmp.ts';

/** How a QEMU machine is named. */
export type QemuTarget = QmpAddress;

/** Opens the QEMU machine that `target` names, without touching its guest. */
export async function openQemu(target: QemuTarget): Promise<QemuMachine> {
  return QemuMachine.open(await openQmp(target), target);
}

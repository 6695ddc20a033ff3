import { QemuMachine } from './machine.ts';
import { UnixQmp } from './unix-qmp.ts';

/** How a QEMU machine is named. */
export type QemuTarget = { readonly qmp: string };

/** Opens the QEMU machine that `target` names, without touching its guest. */
export async function openQemu(target: QemuTarget): Promise<QemuMachine> {
  return QemuMachine.open(await UnixQmp.connect(target.qmp));
}

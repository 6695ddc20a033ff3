import type { QmpTransport } from './qmp.ts';
import { UnixQmp } from './unix-qmp.ts';
import { VirshQmp } from './virsh-qmp.ts';

/** Where a VM's monitor is: at a socket of its own, or behind libvirt (`uri` as virsh takes it). */
export type QmpAddress = { readonly qmp: string } | { readonly libvirt: string; readonly uri?: string };

export function openQmp(address: QmpAddress): Promise<QmpTransport> {
  return 'qmp' in address ? UnixQmp.connect(address.qmp) : VirshQmp.connect(address.libvirt, address.uri);
}

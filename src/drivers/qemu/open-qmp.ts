import type { QmpTransport } from './qmp.ts';
import { SharedQmp, type SharingOptions } from './sharing/shared-qmp.ts';
import { VirshQmp } from './virsh-qmp.ts';

/** Where a VM's monitor is: at a socket of its own, or behind libvirt (`uri` as virsh takes it). */
export type QmpAddress = { readonly qmp: string } | { readonly libvirt: string; readonly uri?: string };

export function openQmp(address: QmpAddress, sharing?: SharingOptions): Promise<QmpTransport> {
  return 'qmp' in address
    ? SharedQmp.connect(address.qmp, sharing)
    : VirshQmp.connect(address.libvirt, address.uri);
}

import type { QmpAddress, QmpTransport } from './qmp.ts';
import { SharedQmp, type SharingOptions } from './sharing/shared-qmp.ts';
import { VirshQmp } from './virsh-qmp.ts';

export type { QmpAddress } from './qmp.ts';

export function openQmp(address: QmpAddress, sharing?: SharingOptions): Promise<QmpTransport> {
  return 'qmp' in address
    ? SharedQmp.connect(address.qmp, sharing)
    : VirshQmp.connect(address.libvirt, address.uri);
}

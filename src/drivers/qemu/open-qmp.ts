import type { QmpTransport } from './qmp.ts';
import { UnixQmp } from './unix-qmp.ts';

/** Where a VM's monitor is. */
export type QmpAddress = { readonly qmp: string };

export function openQmp(address: QmpAddress): Promise<QmpTransport> {
  return UnixQmp.connect(address.qmp);
}

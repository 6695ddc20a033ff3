import type { Machine } from '../../machine/index.ts';
import { UsageError } from '../errors.ts';
import type { TargetKind } from '../target-kind.ts';

/** A QEMU that libvirt manages: its monitor is reached through virsh. */
export const LIBVIRT_TARGET: TargetKind = {
  prefix: 'libvirt',
  syntax: 'DOMAIN',
  about: 'a QEMU domain of libvirt, through `virsh qemu-monitor-command`',
  async open(domain): Promise<Machine> {
    if (domain === '') throw new UsageError('libvirt: the name of a domain is missing', 'libvirt:web');
    const { openQemu } = await import('../../drivers/qemu/index.ts');
    return openQemu({ libvirt: domain });
  },
};

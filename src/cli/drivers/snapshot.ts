import type { Machine } from '../../machine/index.ts';
import { UsageError } from '../errors.ts';
import type { TargetKind } from '../target-kind.ts';

/** A memory dump, as a machine that has stopped for good. */
export const SNAPSHOT_TARGET: TargetKind = {
  prefix: 'file',
  syntax: 'PATH',
  about: 'a memory dump: raw, ELF (virsh dump --memory-only), LiME or kdump',
  async open(path): Promise<Machine> {
    if (path === '') throw new UsageError('file: the path of a memory dump is missing', 'file:vm.elf');
    const { openSnapshot } = await import('../../drivers/snapshot/index.ts');
    return openSnapshot(path);
  },
};

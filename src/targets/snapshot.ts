import { UsageError } from '../error.ts';
import type { Machine } from '../machine/index.ts';
import { formatSize } from '../rows/columns.ts';
import type { Target } from './target.ts';

/** A memory dump, as a machine that has stopped for good. */
export const SNAPSHOT_TARGET: Target = {
  prefix: 'file',
  syntax: 'PATH',
  about: 'a memory dump: raw, ELF (virsh dump --memory-only), LiME or kdump, also what `kvmi dump` packs',
  async open(path, { log }): Promise<Machine> {
    if (path === '') throw new UsageError('file: the path of a memory dump is missing', 'file:vm.elf');
    const { openSnapshot } = await import('../drivers/snapshot/index.ts');
    const machine = openSnapshot(path);
    if (machine.missing > 0)
      log?.warn(
        `the dump is cut off: ${formatSize(machine.missing)} of memory are missing and cannot be read`,
      );
    return machine;
  },
};

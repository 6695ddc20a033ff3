import type { Gva, Machine } from '../machine/index.ts';
import type { Context } from './context.ts';

/** A way to say which VM, with a prefix: `qemu:PATH`. Drivers are imported when something is opened. */
export interface TargetKind {
  readonly prefix: string;
  /** What follows the prefix, for help. */
  readonly syntax: string;
  readonly about: string;
  open(rest: string, context: Context): Promise<Machine>;
  /** Symbols of the guest's kernel, where they are known without looking for Linux in its memory. */
  symbols?(): Promise<ReadonlyMap<string, Gva>>;
}

/** A VM that was opened, and how. */
export interface OpenedVm {
  readonly machine: Machine;
  readonly kind: TargetKind;
}

import type { LeftBehind } from '../drivers/qemu/index.ts';
import type { Gva, Machine } from '../machine/index.ts';

/** Where opening a machine reports what is worth knowing. */
export interface TargetLog {
  info(message: string): void;
  warn(message: string): void;
}

/** How a machine is opened. */
export interface OpenOptions {
  /** Default: nowhere. */
  readonly log?: TargetLog;
  /** What may end a VM when this process is killed is allowed (stock KVM; see docs/explanation/guest-safety.md). Default false. */
  readonly unsafe?: boolean;
  /** Told what was found in the VM of a kvmi that was killed, and what became of it; without it, the log is. */
  readonly onLeft?: (left: LeftBehind) => void;
}

/** A way to say which machine, with a prefix: `qemu:PATH`. Drivers are imported when something is opened. */
export interface Target {
  readonly prefix: string;
  /** What follows the prefix, for help. */
  readonly syntax: string;
  readonly about: string;
  open(rest: string, options: OpenOptions): Promise<Machine>;
  /** Symbols of the guest's kernel, where they are known without looking for Linux in its memory. */
  symbols?(): Promise<ReadonlyMap<string, Gva>>;
}

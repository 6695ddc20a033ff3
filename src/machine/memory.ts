import type { Awaitable } from '../awaitable.ts';
import type { Gpa } from './address.ts';

/** One run of guest-physical addresses with memory behind it. */
export interface MemoryRegion {
  readonly gpa: Gpa;
  /** In bytes, a multiple of the page size. */
  readonly size: number;
  /** True for ROM and read-only slots. */
  readonly readonly: boolean;
}

/** Guest-physical memory. Reads and writes may span regions, but not holes. */
export interface PhysicalMemory {
  /** Sorted by gpa, not overlapping. May change while the machine runs (hotplug). */
  readonly regions: readonly MemoryRegion[];
  /** Fills `into` from `gpa` on. False when any byte of it is not backed; `into` is then unspecified. */
  read(gpa: Gpa, into: Uint8Array): Awaitable<boolean>;
  /** Writes `from` at `gpa`. False, with nothing written, when any byte is not backed or read-only. */
  write(gpa: Gpa, from: Uint8Array): Awaitable<boolean>;
  /** The memory itself, without a copy, where the driver has it and one region holds it all. */
  view?(gpa: Gpa, size: number): Uint8Array | undefined;
  /**
   * The first address from `gpa` on that may hold anything but zeros; undefined when there is none. Whoever reads all
   * of memory skips what the VMM never allocated, where the driver can tell.
   */
  nextData?(gpa: Gpa): Gpa | undefined;
}

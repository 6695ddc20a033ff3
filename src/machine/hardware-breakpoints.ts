import type { Awaitable } from '../awaitable.ts';
import type { Gva } from './address.ts';
import type { Vcpu } from './vcpu.ts';

/** Called with the vCPU outside the guest, before it executes the instruction. It may read and change the vCPU. */
export type HardwareBreakpointHandler = (vcpu: Vcpu) => Awaitable<void>;

/**
 * Breakpoints of the processor, where a driver has them. Nothing in guest memory changes: the guest cannot see them,
 * and none is left in it whatever becomes of this process.
 */
export interface HardwareBreakpoints {
  /** How many there may be at once. */
  readonly count: number;
  /**
   * Stops every vCPU, those that are created later included, before it executes the instruction at a linear address.
   * The machine has to be attached, and takes them back when it is detached. Returns what takes this one back.
   *
   * @throws KvmiError with code E_NO_MEMORY when there are `count` already, E_BUSY when there is one at the address,
   * E_UNSUPPORTED when the VM could be harmed by it.
   */
  set(address: Gva, hit: HardwareBreakpointHandler): Awaitable<() => void>;
}

import type { Awaitable } from '../awaitable.ts';
import type { Gva } from './address.ts';
import type { Vcpu } from './vcpu.ts';

/**
 * By what a machine notices that a vCPU comes to an instruction, with nothing changed in guest memory: the breakpoints
 * of QEMU's gdbstub, the debug registers of the processor, or the interpreter itself.
 */
export type MachineProbeKind = 'gdbstub' | 'debug-registers' | 'embedded';

/**
 * Called with the vCPU outside the guest, before it executes the instruction. It may read and change the vCPU. The
 * instruction is executed afterwards, unless rip was changed; after `retry` nothing happened, and the vCPU comes to it
 * once more.
 */
export type MachineProbeHandler = (vcpu: Vcpu) => Awaitable<'retry' | undefined>;

/**
 * Probes by a machine's own means, where a driver has them. The guest cannot see them, a snapshot or a migration does
 * not carry them along, and none is left in guest memory whatever becomes of this process.
 */
export interface MachineProbes {
  readonly kind: MachineProbeKind;
  /** How many there may be at once; Infinity without a limit. */
  readonly count: number;
  /**
   * Stops every vCPU, those that are created later included, before it executes the instruction at a linear address,
   * mapped already or not. The machine has to be attached, and takes them back when it is detached. Returns what takes
   * this one back; its handler is not called any more when that is done.
   *
   * @throws KvmiError with code E_NO_MEMORY when there are `count` already, E_BUSY when there is one at the address,
   * E_UNSUPPORTED when the VM could be harmed by it.
   */
  set(address: Gva, hit: MachineProbeHandler): Awaitable<() => Awaitable<void>>;
}

/** How a vCPU goes on after a hit. */
export interface ProbeAnswer {
  /** kvm_regs (144 bytes) to set. */
  readonly registers?: Uint8Array | undefined;
  /** The vCPU comes to the instruction once more. */
  readonly retry?: boolean;
}

/** Called with the index of the vCPU and its state, 536 bytes as in an event. */
export type ProbePortHandler = (vcpu: number, state: Uint8Array) => Awaitable<ProbeAnswer>;

/**
 * A machine's probes as the host side gives them to a tool in the same process: KVMI has no messages for them. While a
 * handler runs, the vCPU counts as one with an open event: commands for it are carried out at once.
 */
export interface ProbePort {
  readonly kind: MachineProbeKind;
  readonly count: number;
  /** As {@link MachineProbes.set}. */
  set(address: Gva, hit: ProbePortHandler): Awaitable<() => Awaitable<void>>;
}

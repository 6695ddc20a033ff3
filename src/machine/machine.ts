import type { Awaitable } from '../awaitable.ts';
import type { Capabilities } from './capabilities.ts';

import type { PhysicalMemory } from './memory.ts';
import type { MachineProbes } from './probes.ts';
import type { Answer, Stop, Trap } from './stops.ts';
import type { Vcpu } from './vcpu.ts';
import type { Frames, Views } from './views.ts';

/** Why a machine is about to leave this host or end; see {@link MachineHandler.preUnhook}. */
export type PreUnhookReason = 'suspend' | 'migrate' | 'shutdown' | 'reset';

/**
 * What the host side gives a machine when it attaches. The machine calls it one event at a time for
 * each vCPU; calls for different vCPUs may overlap.
 */
export interface MachineHandler {
  /**
   * A trap fired. The vCPU is outside the guest until the answer is there, and its state can be read
   * and changed meanwhile.
   */
  stop(vcpu: Vcpu, stop: Stop): Awaitable<Answer>;
  /**
   * Answers {@link Vcpu.request}: the vCPU is outside the guest until this is done. Any number of
   * requests made before it starts are answered by one call; one made meanwhile, also while a stop is
   * handled, is answered by another call before the guest is entered. `crash` ends the vCPU as the
   * answer of that name does.
   */
  request(vcpu: Vcpu): Awaitable<'crash' | undefined>;
  /** A vCPU was added; it does not run before this is done. */
  vcpuCreated?(vcpu: Vcpu): Awaitable<void>;
  /** The device manager is about to take the machine away. It should not go on before this is done. */
  preUnhook?(reason: PreUnhookReason): Awaitable<void>;
  /** The guest was reset, and boots. What is armed stays so, at addresses that need not mean the same any more. */
  reset?(): void;
  /** The machine is gone, or can no longer be reached (`error`). Nothing else is called after it. */
  closed(error?: Error): void;
}

/**
 * A virtual machine as a driver presents it.
 *
 * Nothing is armed and no vCPU is touched before `attach`; after `detach` the guest's code, registers
 * and timing are as if it had never been attached.
 */
export interface Machine {
  /** For people: the VMM's name of the VM, or where it was found. */
  readonly name: string;
  /** 16 bytes, in text order. */
  readonly uuid: Uint8Array;
  /** When the machine started, in milliseconds of the host's CLOCK_MONOTONIC; 0 if not known. */
  readonly startTime: number;
  readonly capabilities: Capabilities;
  readonly memory: PhysicalMemory;
  /** By index (creation order). Grows when a vCPU is created. */
  readonly vcpus: readonly Vcpu[];
  /** What a Linux kernel says about itself (VMCOREINFO), where the driver has it apart from memory. */
  readonly vmcoreinfo?: string | undefined;
  /** The additional views of guest memory, where the driver has them. */
  readonly views?: Views;
  /** Probes by the machine's own means, where the driver has them. */
  readonly probes?: MachineProbes | undefined;
  /** Adding and removing guest frames at run time, where the driver can. */
  readonly frames?: Frames;

  /**
   * Starts reporting to `handler`. Throws a KvmiError with code E_BUSY when somebody else holds the machine: another
   * handler, a debugger. Its message says who; `data.holder` is the holder's process id where it is known.
   */
  attach(handler: MachineHandler): Awaitable<void>;
  /** Disarms everything, lets every vCPU run, and stops reporting. Idempotent; never throws. */
  detach(): Awaitable<void>;
  /** Throws a CapabilityError when the driver cannot, a KvmiError with code E_BUSY when somebody else holds it. */
  arm(trap: Trap): Awaitable<void>;
  /** Takes back `arm`. Disarming what is not armed does nothing. */
  disarm(trap: Trap): Awaitable<void>;
  /** Asks the VMM to end, as dialects v7 and v9 do on the action "crash" (SIGTERM to the process). */
  kill?(): Awaitable<void>;
  /** Releases what the driver holds; detaches first. The VM itself goes on, unless it lives in this process. */
  close(): Promise<void>;
}

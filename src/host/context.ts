import type { Awaitable } from '../awaitable.ts';
import type { Exception, InterceptedCr, Machine, Vcpu } from '../machine/index.ts';
import type { Dialect, EventName } from '../wire/index.ts';
import type { HookLog } from './log.ts';
import type { Permissions } from './permissions.ts';
import type { Rules } from './rules.ts';

/*
 * What is there while a machine is hooked, as those see it who work for the tool: handlers of commands, routes of
 * stops. The objects behind it import them, they import none of the objects.
 */

/** What holds for the whole machine. */
export interface HookContext {
  readonly machine: Machine;
  readonly dialect: Dialect;
  readonly rules: Rules;
  readonly permissions: Permissions;
  readonly log: HookLog;
  /** Runs something whose failure ends the connection. */
  guarded(run: () => Awaitable<void>): Awaitable<void>;
  /** The action "crash" of dialects v7 and v9: the VMM gets SIGTERM. */
  kill(): Awaitable<void>;
}

/** One vCPU. */
export interface VcpuContext {
  readonly hook: HookContext;
  readonly vcpu: Vcpu;
  /** Whether an event waits for its reply, or a probe is handled. */
  readonly waiting: boolean;
  /** Events enabled with VCPU_CONTROL_EVENTS. */
  readonly events: Set<EventName>;
  /** Registers selected with VCPU_CONTROL_CR and VCPU_CONTROL_MSR. */
  readonly crs: Set<InterceptedCr>;
  readonly msrs: Set<number>;
  singlestep: boolean;
  /** From VCPU_INJECT_EXCEPTION until its TRAP event is sent. */
  injecting: boolean;
  /** An exception that waits for single-stepping to end (dialects v7 and v9). */
  heldException: Exception | undefined;
  /** PAUSE events that are still to be sent. */
  pauseRequests: number;
  /** VCPU_SET_REGISTERS during an event: kept until the event is answered; the last one wins. */
  delayRegisters(regs: Uint8Array): void;
}

/** The machine with its vCPUs and what the tool has set for all of them. */
export interface VmContext extends HookContext {
  /** By index. */
  readonly vcpus: readonly VcpuContext[];
  /** Events enabled with VM_CONTROL_EVENTS. */
  readonly vmEvents: Set<EventName>;
  /** Dialect v7, VM_CONTROL_CMD_RESPONSE. */
  readonly responses: { enabled: boolean; errorsAsEvents: boolean };
  /** VM_CONTROL_CLEANUP. Unhooking always cleans up here: a trap that nobody answers would harm the guest. */
  cleanup: boolean;
}

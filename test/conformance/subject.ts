import type { Machine } from '../../src/machine/index.ts';

/** What a guest can be asked to do; each is one effect that KVMI can intercept. */
export type GuestAction =
  | 'noop'
  | 'int3'
  | 'vmcall'
  | 'vmcall-other'
  | 'cr4'
  | 'cr3'
  | 'msr'
  | 'xsetbv'
  | 'sgdt'
  | 'lgdt'
  | 'cpuid'
  | 'write-page'
  | 'read-page'
  | 'execute-page'
  | 'ud2'
  /** Handles an exception that comes out of the blue, and goes on. */
  | 'take-exception';

/** A guest that carries out actions, one at a time. */
export interface SubjectGuest {
  /** A page that nothing but the page actions touches. */
  readonly testPage: { readonly gpa: number; readonly gva: bigint };
  /** The register that the action `msr` writes, each time to another value. */
  readonly msr?: number;
  /** Bytes of the instruction that writes to it, where the guest can. */
  readonly writeLength?: number;
  /** Why a page stop for a write may come after the write, against the contract; undefined when it comes before. */
  readonly lateWrites?: string;
  /** Why an action cannot be asked for; undefined when it can. */
  cannot(action: GuestAction): string | undefined;
  /** Asks for an action; resolves when the guest has done it, with its result. */
  act(action: GuestAction): Promise<bigint>;
  /**
   * Whether the VMM is in a debugger's hands, as anybody on the host can see: its gdbstub is in use, its threads are
   * traced. Undefined where the VM has no process of its own.
   */
  readonly isDebugged?: () => Promise<boolean>;
  /** Takes the vCPUs out of the guest, as a device manager that does not call KVM_RUN. Undefined: not possible. */
  readonly hold?: () => Promise<void>;
  readonly release?: () => Promise<void>;
  /** Starts vCPU 1, which nobody has started before. Undefined: there is none. */
  readonly startVcpu?: () => Promise<void>;
  /** Adds a vCPU and starts it. Present where the capability create-vcpu is. */
  readonly addVcpu?: () => Promise<void>;
}

/** A fresh machine with such a guest, running. */
export interface RunningSubject {
  readonly machine: Machine;
  readonly guest: SubjectGuest;
  close(): Promise<void>;
}

/** A driver under test. */
export interface Subject {
  readonly driver: string;
  /** Why it cannot be tested here; undefined when it can. */
  unavailable(): string | undefined;
  start(): Promise<RunningSubject>;
  /** docs/support.md has a section for it. */
  readonly documented?: true;
  /** Each test gets a machine of its own; otherwise all share one. */
  readonly fresh: boolean;
}

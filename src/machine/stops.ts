import type { Gfn, Gpa, Gva } from './address.ts';
import type { Vcpu } from './vcpu.ts';

/** Control registers whose writes can be intercepted. */
export type InterceptedCr = 0 | 3 | 4;

/** Access bits of KVMI: a set bit means *allowed* in a page trap, *attempted* in a page stop. */
export const ACCESS = { read: 1, write: 2, execute: 4, all: 7 } as const;

/** Descriptor-table registers (kvmi.rst, KVMI_VCPU_EVENT_DESCRIPTOR), with their KVMI numbers. */
export const DESCRIPTOR_TABLE = { idtr: 1, gdtr: 2, ldtr: 3, tr: 4 } as const;
export type DescriptorTable = (typeof DESCRIPTOR_TABLE)[keyof typeof DESCRIPTOR_TABLE];

/** Something to arm. All but `page` belong to one vCPU. */
export type Trap =
  /** #BP raised by int3, whoever wrote it. */
  | { readonly kind: 'breakpoint'; readonly vcpu: Vcpu }
  | { readonly kind: 'cr'; readonly vcpu: Vcpu; readonly cr: InterceptedCr }
  /** Writes to one MSR by the guest. */
  | { readonly kind: 'msr'; readonly vcpu: Vcpu; readonly msr: number }
  | { readonly kind: 'xsetbv'; readonly vcpu: Vcpu }
  | { readonly kind: 'descriptor'; readonly vcpu: Vcpu }
  /** The vendor's hypercall instruction with the KVMI number (rax 34, rdi 24, rsi 0). */
  | { readonly kind: 'hypercall'; readonly vcpu: Vcpu }
  | { readonly kind: 'cpuid'; readonly vcpu: Vcpu }
  | { readonly kind: 'singlestep'; readonly vcpu: Vcpu }
  /** Restricts a frame to `access`; `ACCESS.all` is the same as disarming. `view` 0 is the only one without views. */
  | { readonly kind: 'page'; readonly gfn: Gfn; readonly access: number; readonly view: number };

export type TrapKind = Trap['kind'];

/** What a vCPU is about to do, reported *before* the effect unless noted. A driver may reuse the object. */
export type Stop =
  /** rip still points at the int3. */
  | { readonly kind: 'breakpoint'; readonly gpa: Gpa; readonly length: number }
  | { readonly kind: 'cr'; readonly cr: InterceptedCr; readonly old: bigint; readonly new: bigint }
  | { readonly kind: 'msr'; readonly msr: number; readonly old: bigint; readonly new: bigint }
  /** After the new value is in effect. */
  | { readonly kind: 'xsetbv'; readonly xcr: number; readonly old: bigint; readonly new: bigint }
  | { readonly kind: 'descriptor'; readonly table: DescriptorTable; readonly write: boolean }
  | { readonly kind: 'hypercall' }
  | { readonly kind: 'cpuid'; readonly leaf: number; readonly subleaf: number; readonly length: number }
  /** After one instruction; `failed` when the vCPU came out for another reason than the step. */
  | { readonly kind: 'singlestep'; readonly failed: boolean }
  /** An access that a page trap denies. `gva` is all-ones (2^64-1) when not known; `access` has the denied bits. */
  | {
      readonly kind: 'page';
      readonly gva: Gva;
      readonly gpa: Gpa;
      readonly access: number;
      readonly view: number;
    }
  /** After an injection: what was really injected. */
  | {
      readonly kind: 'trap';
      readonly vector: number;
      readonly errorCode: number;
      readonly address: bigint;
    };

export type StopKind = Stop['kind'];

/**
 * How a vCPU goes on after a stop.
 *
 * - `continue`: the effect happens. A breakpoint delivers #BP to the guest; a page access is carried
 *   out this once in spite of the trap; a cpuid instruction is skipped, its registers having been set by the tool.
 *   `value` replaces what a CR or MSR write would store.
 * - `retry`: nothing happened; the guest is entered again at rip.
 * - `refuse`: the effect does not happen; a CR or MSR write raises #GP, anything else is as `retry`.
 * - `crash`: the effect does not happen and the vCPU leaves the guest for good (KVM_EXIT_SHUTDOWN).
 */
export interface Answer {
  readonly action: 'continue' | 'retry' | 'refuse' | 'crash';
  readonly value?: bigint;
  /** Dialect v7, page stops only: bytes that reads of this access get instead of memory. */
  readonly substitute?: { readonly gva: Gva; readonly bytes: Uint8Array };
  /** Dialect v7, page stops only: no further page stop for the current REP instruction. */
  readonly repComplete?: boolean;
}

export const CONTINUE: Answer = { action: 'continue' };
export const RETRY: Answer = { action: 'retry' };
export const REFUSE: Answer = { action: 'refuse' };
export const CRASH: Answer = { action: 'crash' };

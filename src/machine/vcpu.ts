import type { Awaitable } from '../awaitable.ts';
import type { Gpa } from './address.ts';

/** The four registers that CPUID fills. */
export interface CpuidLeaf {
  readonly eax: number;
  readonly ebx: number;
  readonly ecx: number;
  readonly edx: number;
}

/** An exception to inject (kvmi.rst, KVMI_VCPU_INJECT_EXCEPTION). */
export interface Exception {
  /** Vector, 0–31. */
  readonly vector: number;
  /** Ignored for vectors that have none. */
  readonly errorCode: number;
  /** CR2 for vector 14. */
  readonly address: bigint;
}

/**
 * One virtual processor.
 *
 * Everything but `index`, `started`, `tscHz` and `request` may be called only while the vCPU is outside the
 * guest, that is inside the handler's `stop` and `request`. A method whose capability is absent
 * throws a CapabilityError.
 */
export interface Vcpu {
  /** Creation order, from 0: the number that KVMI messages carry. */
  readonly index: number;
  /** False until the vCPU was started (an application processor before INIT/SIPI). */
  readonly started: boolean;
  /** Virtual TSC frequency in Hz, 0 if not known. */
  readonly tscHz: number;

  /**
   * Asks for one call of the handler's `request` with this vCPU outside the guest. What is returned is
   * done when the vCPU has left the guest: at once when it is not in it.
   */
  request(): Awaitable<void>;

  /**
   * Fills `into` (536 bytes) with the x86 block of an event: mode, kvm_regs, kvm_sregs and nine MSRs;
   * layout `vcpuState` in abi/. While a stop is handled it is the state before the effect.
   */
  readState(into: Uint8Array): Awaitable<void>;
  /** Writes kvm_regs (144 bytes: general registers, rip, rflags). */
  writeRegisters(regs: Uint8Array): Awaitable<void>;
  /** Undefined when there is no such MSR or it cannot be read. Host-initiated: permissions of the guest do not matter. */
  readMsr(index: number): Awaitable<bigint | undefined>;
  /** Undefined when the vCPU's CPUID table has no such leaf. */
  cpuid(leaf: number, subleaf: number): Awaitable<CpuidLeaf | undefined>;
  /** Extended control register 0. */
  xcr0(): Awaitable<bigint>;
  /** Fills `into` (4096 bytes) in the layout of KVM_GET_XSAVE. */
  readXsave(into: Uint8Array): Awaitable<void>;
  /** False when the area is not acceptable (reserved bits). */
  writeXsave(area: Uint8Array): Awaitable<boolean>;
  /** Memory type of a guest-physical address: 0 UC, 1 WC, 4 WT, 5 WP, 6 WB. */
  mtrrType(gpa: Gpa): Awaitable<number>;
  /**
   * Queues an exception for the next entry to the guest, unless an event that must be delivered first
   * takes its place. A `trap` stop follows with what was really injected.
   */
  inject(exception: Exception): Awaitable<void>;
}

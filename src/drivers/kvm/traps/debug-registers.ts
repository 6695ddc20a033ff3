import { KvmiError } from '../../../error.ts';
import type { Gva, HardwareBreakpointHandler } from '../../../machine/index.ts';

/** DR0 to DR3 (Intel SDM vol. 3, 18.2). */
export const DEBUG_REGISTERS = 4;

/** The breakpoints of a VM's vCPUs by KVM_SET_GUEST_DEBUG, the same on all of them. */
export class DebugRegisters {
  readonly #handlers = new Map<Gva, HardwareBreakpointHandler>();
  readonly #apply: (addresses: readonly Gva[]) => void;

  /** `apply` brings the addresses into effect; it throws when that is not possible. */
  constructor(apply: (addresses: readonly Gva[]) => void) {
    this.#apply = apply;
  }

  get addresses(): readonly Gva[] {
    return [...this.#handlers.keys()];
  }

  handlerAt(address: Gva): HardwareBreakpointHandler | undefined {
    return this.#handlers.get(address);
  }

  set(gva: Gva, hit: HardwareBreakpointHandler): () => void {
    const address = BigInt.asUintN(64, gva);
    if (this.#handlers.has(address)) {
      throw new KvmiError('E_BUSY', `there is a breakpoint at 0x${address.toString(16)} already`);
    }
    if (this.#handlers.size >= DEBUG_REGISTERS) {
      throw new KvmiError(
        'E_NO_MEMORY',
        `a vCPU has ${DEBUG_REGISTERS} hardware breakpoints, and all of them are set`,
      );
    }
    this.#apply([...this.#handlers.keys(), address]);
    this.#handlers.set(address, hit);
    return () => {
      if (this.#handlers.get(address) !== hit) return;
      this.#handlers.delete(address);
      this.#apply(this.addresses);
    };
  }

  /** Forgets all of them; the machine has taken them back. */
  clear(): void {
    this.#handlers.clear();
  }
}

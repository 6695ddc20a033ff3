import { KvmiError } from '../../../error.ts';
import type { Gva, MachineProbeHandler } from '../../../machine/index.ts';

/** DR0 to DR3 (Intel SDM vol. 3, 18.2). */
export const DEBUG_REGISTERS = 4;

/** The probes of a VM's vCPUs by KVM_SET_GUEST_DEBUG, the same on all of them. */
export class DebugRegisters {
  readonly #handlers = new Map<Gva, MachineProbeHandler>();
  readonly #apply: (addresses: readonly Gva[]) => void;

  /** `apply` brings the addresses into effect; it throws when that is not possible. */
  constructor(apply: (addresses: readonly Gva[]) => void) {
    this.#apply = apply;
  }

  get addresses(): readonly Gva[] {
    return [...this.#handlers.keys()];
  }

  handlerAt(address: Gva): MachineProbeHandler | undefined {
    return this.#handlers.get(address);
  }

  set(gva: Gva, hit: MachineProbeHandler): () => void {
    const address = BigInt.asUintN(64, gva);
    if (this.#handlers.has(address)) {
      throw new KvmiError('E_BUSY', `there is a probe at 0x${address.toString(16)} already`);
    }
    if (this.#handlers.size >= DEBUG_REGISTERS) {
      throw new KvmiError(
        'E_NO_MEMORY',
        `a vCPU has ${DEBUG_REGISTERS} debug registers, and all of them are in use`,
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

import { KvmiError } from '../../error.ts';
import type { Gva, MachineProbeHandler, MachineProbes } from '../../machine/index.ts';
import type { OpCache } from './cpu/op.ts';
import { highHalf, lowHalf } from './cpu/wide.ts';

/**
 * Probes of the interpreter: the decoder puts an instruction that asks first in the place of those with a probe, so that
 * the others cost nothing.
 */
export class EmbeddedProbes implements MachineProbes {
  readonly kind = 'embedded';
  readonly count = Number.POSITIVE_INFINITY;
  readonly #code: OpCache;
  readonly #handlers = new Map<Gva, MachineProbeHandler>();

  constructor(code: OpCache) {
    this.#code = code;
  }

  set(gva: Gva, hit: MachineProbeHandler): () => void {
    const address = BigInt.asUintN(64, gva);
    if (this.#handlers.has(address)) {
      throw new KvmiError('E_BUSY', `there is a probe at 0x${address.toString(16)} already`);
    }
    this.#handlers.set(address, hit);
    this.#code.probes.add(lowHalf(address), highHalf(address));
    this.#code.dropAll();
    return () => {
      if (this.#handlers.get(address) === hit) this.#forget(address);
    };
  }

  handlerAt(address: Gva): MachineProbeHandler | undefined {
    return this.#handlers.get(address);
  }

  /** Takes all of them back. */
  clear(): void {
    for (const address of [...this.#handlers.keys()]) this.#forget(address);
  }

  #forget(address: Gva): void {
    this.#handlers.delete(address);
    this.#code.probes.delete(lowHalf(address), highHalf(address));
    this.#code.dropAll();
  }
}

import type { Gva } from '../machine/index.ts';
import type { Guest, GuestVcpu, Probe, ProbeHandler } from '../tool/index.ts';

/** More than this many are refused: each costs work at every read of memory. */
const MAX_BREAKPOINTS = 4096;

/** How GDB counts breakpoints: in memory (`Z0`), or of the hardware (`Z1`). */
export type BreakpointType = 'software' | 'hardware';

/** A breakpoint that GDB inserted. */
interface Inserted {
  readonly type: BreakpointType;
  readonly gva: Gva;
  readonly vcpu: GuestVcpu;
  /** The byte in memory; undefined when it is not mapped. */
  readonly original: number | undefined;
  /** Undefined while it is lifted. */
  probe: Probe | undefined;
}

/**
 * The breakpoints that GDB inserted: probes. Software ones may be an int3 in guest memory, which is not seen by what is
 * read and not lost by what is written through this table; hardware ones never are.
 */
export class GdbBreakpoints {
  readonly #guest: Guest;
  readonly #onHit: ProbeHandler;
  /** By type and address, as GDB counts them. */
  readonly #inserted = new Map<string, Inserted>();

  constructor(guest: Guest, onHit: ProbeHandler) {
    this.#guest = guest;
    this.#onHit = onHit;
  }

  /** Inserts one; again is no error. False when there are too many. Throws what `guest.probes.at` does. */
  async insert(type: BreakpointType, gva: Gva, vcpu: GuestVcpu): Promise<boolean> {
    const key = `${type} ${gva}`;
    if (this.#inserted.has(key)) return true;
    if (this.#inserted.size >= MAX_BREAKPOINTS) return false;
    const byte = new Uint8Array(1);
    const original = (await this.read(vcpu, gva, byte)) ? byte[0] : undefined;
    const inserted: Inserted = { type, gva, vcpu, original, probe: undefined };
    await this.#set(inserted);
    this.#inserted.set(key, inserted);
    return true;
  }

  async #set(inserted: Inserted): Promise<void> {
    const { type, gva, vcpu } = inserted;
    inserted.probe = await this.#guest.probes.at(gva, this.#onHit, { vcpu, int3: type === 'software' });
  }

  /** Removes one; one that is not there is no error. */
  async remove(type: BreakpointType, gva: Gva): Promise<void> {
    const key = `${type} ${gva}`;
    const inserted = this.#inserted.get(key);
    this.#inserted.delete(key);
    await inserted?.probe?.remove();
  }

  async removeAll(): Promise<void> {
    const all = [...this.#inserted.values()];
    this.#inserted.clear();
    await Promise.allSettled(all.map(({ probe }) => probe?.remove()));
  }

  /** Takes those between two addresses out until {@link restore}; `memory`: only those that are in guest memory. */
  async lift(from: Gva, size: number, which: 'all' | 'memory'): Promise<void> {
    for (const inserted of this.#inserted.values()) {
      const { gva, probe } = inserted;
      if (gva < from || gva >= from + BigInt(size) || (which === 'memory' && probe?.kind !== 'int3'))
        continue;
      inserted.probe = undefined;
      await probe?.remove();
    }
  }

  /** Sets again what was lifted. Those that cannot be set any more are given to `failed`. */
  async restore(failed: (error: unknown) => void): Promise<void> {
    for (const [key, inserted] of this.#inserted) {
      if (inserted.probe) continue;
      try {
        const fresh = { ...inserted, original: await this.#byteAt(inserted) };
        await this.#set(fresh);
        this.#inserted.set(key, fresh);
      } catch (error) {
        this.#inserted.delete(key);
        failed(error);
      }
    }
  }

  async #byteAt({ gva, vcpu }: Inserted): Promise<number | undefined> {
    const byte = new Uint8Array(1);
    return (await this.read(vcpu, gva, byte)) ? byte[0] : undefined;
  }

  /** Guest memory without the int3. False when it is not mapped. */
  async read(vcpu: GuestVcpu, gva: Gva, into: Uint8Array): Promise<boolean> {
    if (!(await vcpu.memory.read(gva, into))) return false;
    for (const { gva: place, original, probe } of this.#inserted.values()) {
      if (probe?.kind !== 'int3' || original === undefined) continue;
      if (place >= gva && place < gva + BigInt(into.length)) into[Number(place - gva)] = original;
    }
    return true;
  }

  /** Writes guest memory under the breakpoints. False when it is not mapped or cannot be written. */
  async write(
    vcpu: GuestVcpu,
    gva: Gva,
    from: Uint8Array,
    failed: (error: unknown) => void,
  ): Promise<boolean> {
    await this.lift(gva, from.length, 'memory');
    try {
      return await vcpu.memory.write(gva, from);
    } finally {
      await this.restore(failed);
    }
  }
}

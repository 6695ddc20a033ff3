import type { Gva } from '../machine/index.ts';
import type { Breakpoint, BreakpointHandler, Guest, GuestVcpu } from '../tool/index.ts';

/** More than this many are refused: each costs work at every read of memory. */
const MAX_BREAKPOINTS = 4096;

/** A breakpoint that GDB inserted. */
interface Inserted {
  readonly gva: Gva;
  readonly vcpu: GuestVcpu;
  /** The byte that int3 replaced. */
  readonly original: number;
  /** Undefined while it is lifted. */
  breakpoint: Breakpoint | undefined;
}

/**
 * The breakpoints that GDB inserted. Software and hardware ones are the same here: an int3 in guest memory, which is
 * not seen by what is read and not lost by what is written through this table.
 */
export class GdbBreakpoints {
  readonly #guest: Guest;
  readonly #onHit: BreakpointHandler;
  /** By type and address, as GDB counts them. */
  readonly #inserted = new Map<string, Inserted>();

  constructor(guest: Guest, onHit: BreakpointHandler) {
    this.#guest = guest;
    this.#onHit = onHit;
  }

  /** Inserts one; again is no error. False when the address cannot be read. Throws what `guest.breakpoints.set` does. */
  async insert(type: string, gva: Gva, vcpu: GuestVcpu): Promise<boolean> {
    const key = `${type} ${gva}`;
    if (this.#inserted.has(key)) return true;
    if (this.#inserted.size >= MAX_BREAKPOINTS) return false;
    const byte = new Uint8Array(1);
    if (!(await this.read(vcpu, gva, byte))) return false;
    const inserted: Inserted = { gva, vcpu, original: byte[0]!, breakpoint: undefined };
    await this.#set(inserted);
    this.#inserted.set(key, inserted);
    return true;
  }

  async #set(inserted: Inserted): Promise<void> {
    const { gva, vcpu } = inserted;
    inserted.breakpoint = await this.#guest.breakpoints.set(gva, this.#onHit, { vcpu });
  }

  /** Removes one; one that is not there is no error. */
  async remove(type: string, gva: Gva): Promise<void> {
    const key = `${type} ${gva}`;
    const inserted = this.#inserted.get(key);
    this.#inserted.delete(key);
    await inserted?.breakpoint?.remove();
  }

  async removeAll(): Promise<void> {
    const all = [...this.#inserted.values()];
    this.#inserted.clear();
    await Promise.allSettled(all.map(({ breakpoint }) => breakpoint?.remove()));
  }

  /** Takes those between two addresses out until {@link restore}. */
  async lift(from: Gva, size: number): Promise<void> {
    for (const inserted of this.#inserted.values()) {
      if (inserted.gva < from || inserted.gva >= from + BigInt(size)) continue;
      const { breakpoint } = inserted;
      inserted.breakpoint = undefined;
      await breakpoint?.remove();
    }
  }

  /** Sets again what was lifted. Those that cannot be set any more are given to `failed`. */
  async restore(failed: (error: unknown) => void): Promise<void> {
    for (const [key, inserted] of this.#inserted) {
      if (inserted.breakpoint) continue;
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

  async #byteAt({ gva, vcpu }: Inserted): Promise<number> {
    const byte = new Uint8Array(1);
    return (await this.read(vcpu, gva, byte)) ? byte[0]! : 0;
  }

  /** Guest memory without the int3. False when it is not mapped. */
  async read(vcpu: GuestVcpu, gva: Gva, into: Uint8Array): Promise<boolean> {
    if (!(await vcpu.memory.read(gva, into))) return false;
    for (const { gva: place, original, breakpoint } of this.#inserted.values()) {
      if (breakpoint && place >= gva && place < gva + BigInt(into.length))
        into[Number(place - gva)] = original;
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
    await this.lift(gva, from.length);
    try {
      return await vcpu.memory.write(gva, from);
    } finally {
      await this.restore(failed);
    }
  }
}

import type { PhysicalMemory } from '../../machine/memory.ts';
import { translate } from '../../machine/page-walk.ts';
import { pagingOf } from '../../machine/paging.ts';
import { readDelivery, undeliver } from './breakpoint-trap.ts';
import type { StoppedVcpu } from './stopped-vcpu.ts';

const INT3 = 0xcc;
/** A longer write is data or a whole new page of code, not a breakpoint. */
const PATCH_LIMIT = 16;

/**
 * The breakpoints that tools have written into guest memory: every byte that became int3 by a short write, with what
 * it was before. They are taken back when a tool leaves them behind.
 */
export class Patches {
  readonly #originals = new Map<number, number>();
  readonly #onChange: (gpa: number, original: number | undefined) => void;

  /** `onChange` is told of each patch before it is written, and of each that is gone (undefined). */
  constructor(onChange: (gpa: number, original: number | undefined) => void = () => {}) {
    this.#onChange = onChange;
  }

  get size(): number {
    return this.#originals.size;
  }

  add(gpa: number, original: number): void {
    this.#originals.set(gpa, original);
    this.#onChange(gpa, original);
  }

  delete(gpa: number): void {
    if (this.#originals.delete(gpa)) this.#onChange(gpa, undefined);
  }

  clear(): void {
    for (const gpa of [...this.#originals.keys()]) this.delete(gpa);
  }

  /** To be called before `from` is written at `gpa`. */
  async note(memory: PhysicalMemory, gpa: number, from: Uint8Array): Promise<void> {
    for (const patched of this.#originals.keys()) {
      const now = from[patched - gpa];
      if (now !== undefined && now !== INT3) this.delete(patched);
    }
    if (from.length > PATCH_LIMIT || !from.includes(INT3)) return;
    const before = new Uint8Array(from.length);
    if (!(await memory.read(gpa, before))) return;
    from.forEach((byte, i) => {
      if (byte === INT3 && before[i] !== INT3 && !this.#originals.has(gpa + i)) this.add(gpa + i, before[i]!);
    });
  }

  /**
   * Puts the bytes back that are still int3, and takes #BP back from the vCPUs that have just run into one of them:
   * those whose rip is in `handlers`. `memory` must write as {@link StoppedMemory} does.
   */
  async restore(
    memory: PhysicalMemory,
    vcpus: readonly StoppedVcpu[],
    handlers: ReadonlySet<bigint>,
  ): Promise<void> {
    if (this.size === 0) return;
    const byte = new Uint8Array(1);
    for (const [gpa, original] of this.#originals) {
      if ((await memory.read(gpa, byte)) && byte[0] === INT3)
        await memory.write(gpa, Uint8Array.of(original));
    }
    for (const vcpu of vcpus) await this.#takeBack(memory, vcpu, handlers);
    this.clear();
  }

  async #takeBack(memory: PhysicalMemory, vcpu: StoppedVcpu, handlers: ReadonlySet<bigint>): Promise<void> {
    if (!handlers.has(await vcpu.gdb.readRegister(vcpu.index, 'rip'))) return;
    const delivery = await readDelivery(memory, await vcpu.state());
    if (delivery === undefined) return;
    const gpa = await translate(memory, pagingOf(delivery.block), delivery.int3);
    if (gpa !== undefined && this.#originals.has(gpa)) await undeliver(vcpu, delivery);
  }
}

import type { PhysicalMemory } from '../../machine/memory.ts';
import { translate } from '../../machine/page-walk.ts';
import { pagingOf } from '../../machine/paging.ts';
import { readDelivery, undeliver } from './breakpoint-trap.ts';
import type { StoppedVcpu } from './stopped-vcpu.ts';

const INT3 = 0xcc;
/** A longer write is data or a whole new page of code, not a breakpoint. */
const PATCH_LIMIT = 16;

/** Where in guest memory int3 is, or was, and what has to be there; null: int3 is taken out already. */
export type Patch = readonly [gpa: number, original: number | null];

/** Whether bytes that are to be written may be a breakpoint. */
export function isPatch(from: Uint8Array): boolean {
  return from.length <= PATCH_LIMIT && from.includes(INT3);
}

/**
 * The breakpoints that tools have written into guest memory: every byte that became int3 by a short write, with what
 * it was before. They are taken back when a tool leaves them behind. Those that a tool has taken out itself are kept in
 * mind, as a vCPU may have run into one just before.
 */
export class Patches {
  readonly #originals = new Map<number, number | null>();
  readonly #onChange: (patches: readonly Patch[]) => void;

  /** `onChange` is told of all patches before another one is written, and after one is gone. */
  constructor(onChange: (patches: readonly Patch[]) => void = () => {}, patches: readonly Patch[] = []) {
    this.#onChange = onChange;
    for (const [gpa, original] of patches) this.#originals.set(gpa, original);
  }

  /** Where int3 is. */
  get armed(): readonly number[] {
    return [...this.#originals].flatMap(([gpa, original]) => (original === null ? [] : gpa));
  }

  /** What has to be where int3 is; undefined where none is. */
  originalAt(gpa: number): number | undefined {
    return this.#originals.get(gpa) ?? undefined;
  }

  /** Those that have been written must not be in anything that others keep. */
  get any(): boolean {
    return this.armed.length > 0;
  }

  clear(): void {
    if (this.#originals.size === 0) return;
    this.#originals.clear();
    this.#onChange([]);
  }

  /** To be called before `from` is written at `gpa`. */
  async note(memory: PhysicalMemory, gpa: number, from: Uint8Array): Promise<void> {
    if (!isPatch(from)) return;
    const before = new Uint8Array(from.length);
    if (!(await memory.read(gpa, before))) return;
    this.#change(
      (at) => {
        const i = at - gpa;
        return from[i] === INT3 && before[i] !== INT3 ? (this.#originals.get(at) ?? before[i]!) : undefined;
      },
      Array.from(from, (_, i) => gpa + i),
    );
  }

  /** To be called after `from` was written at `gpa`. */
  written(gpa: number, from: Uint8Array): void {
    const over = (at: number): boolean => from[at - gpa] !== undefined && from[at - gpa] !== INT3;
    this.#change((at) => (over(at) ? null : undefined), this.armed);
  }

  /**
   * Puts the bytes back that are still int3, and takes #BP back from the vCPUs that have just run into one of them:
   * those whose rip is in `handlers`. `memory` must write as {@link StoppedMemory} does. Returns where int3 still is.
   */
  async restore(
    memory: PhysicalMemory,
    vcpus: readonly StoppedVcpu[],
    handlers: ReadonlySet<bigint>,
  ): Promise<number[]> {
    if (this.#originals.size === 0) return [];
    const left: number[] = [];
    for (const [gpa, original] of this.#originals) {
      if (original === null || !(await isInt3(memory, gpa))) continue;
      await memory.write(gpa, Uint8Array.of(original));
      if (await isInt3(memory, gpa)) left.push(gpa);
    }
    // Whatever is not known of a vCPU, the guest goes on.
    for (const vcpu of vcpus) await this.#takeBack(memory, vcpu, handlers).catch(() => {});
    for (const gpa of this.#originals.keys()) if (!left.includes(gpa)) this.#originals.delete(gpa);
    this.#onChange([...this.#originals]);
    return left;
  }

  async #takeBack(memory: PhysicalMemory, vcpu: StoppedVcpu, handlers: ReadonlySet<bigint>): Promise<void> {
    if (!handlers.has(await vcpu.gdb.readRegister(vcpu.index, 'rip'))) return;
    const delivery = await readDelivery(memory, await vcpu.state());
    if (delivery === undefined) return;
    const gpa = await translate(memory, pagingOf(delivery.block), delivery.int3);
    // An int3 that is there now is the guest's own.
    if (gpa !== undefined && this.#originals.has(gpa) && !(await isInt3(memory, gpa)))
      await undeliver(vcpu, delivery);
  }

  /** `value` says what becomes of an address; undefined: nothing. */
  #change(value: (gpa: number) => number | null | undefined, of: Iterable<number>): void {
    let changed = false;
    for (const gpa of of) {
      const next = value(gpa);
      if (next === undefined || this.#originals.get(gpa) === next) continue;
      this.#originals.set(gpa, next);
      changed = true;
    }
    if (changed) this.#onChange([...this.#originals]);
  }
}

async function isInt3(memory: PhysicalMemory, gpa: number): Promise<boolean> {
  const byte = new Uint8Array(1);
  return (await memory.read(gpa, byte)) && byte[0] === INT3;
}

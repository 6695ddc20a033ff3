import { type MemoryRegion, type PhysicalMemory, RegionMemory } from '../../../machine/index.ts';
import type { ProcessMemory } from '../../../system/process-memory.ts';
import type { Memslot } from './memslots.ts';

/** How long a failed access is not taken as a reason to look for new slots again, in ms. */
const REFRESH_INTERVAL_MS = 50;

/** Called before bytes of the VMM are written from outside; returns what is done afterwards. */
export type BeforeWrite = (hva: number, bytes: Uint8Array) => (() => void) | undefined;

/** Guest memory as its VMM has it mapped, read through /proc/PID/mem. */
export class VmmMemory implements PhysicalMemory {
  readonly #memory: ProcessMemory;
  readonly #slots: () => readonly Memslot[];
  readonly #regions = new RegionMemory([]);
  readonly #beforeWrite: BeforeWrite;
  #current: readonly Memslot[] = [];
  #refreshed = Number.NEGATIVE_INFINITY;

  constructor(memory: ProcessMemory, slots: () => readonly Memslot[], beforeWrite: BeforeWrite) {
    this.#memory = memory;
    this.#slots = slots;
    this.#beforeWrite = beforeWrite;
  }

  get regions(): readonly MemoryRegion[] {
    if (this.#current.length === 0) this.refresh();
    return this.#regions.regions;
  }

  /** Reads the slots again; true when they have changed. */
  refresh(): boolean {
    const now = performance.now();
    if (now - this.#refreshed < REFRESH_INTERVAL_MS) return false;
    const slots = this.#slots();
    this.#refreshed = performance.now();
    if (same(slots, this.#current)) return false;
    this.#current = slots;
    this.#regions.setRegions(slots.map((slot) => ({ ...slot, backend: this.#backend(slot.hva) })));
    return true;
  }

  #backend(hva: number) {
    return {
      read: (offset: number, into: Uint8Array) => this.#memory.read(hva + offset, into),
      write: (offset: number, from: Uint8Array) => {
        const after = this.#beforeWrite(hva + offset, from);
        const written = this.#memory.write(hva + offset, from);
        after?.();
        return written;
      },
    };
  }

  read(gpa: number, into: Uint8Array): boolean {
    if (this.#regions.read(gpa, into)) return true;
    return this.refresh() && (this.#regions.read(gpa, into) as boolean);
  }

  write(gpa: number, from: Uint8Array): boolean {
    if (this.#regions.write(gpa, from)) return true;
    return this.refresh() && (this.#regions.write(gpa, from) as boolean);
  }

  /** Where the VMM has a guest-physical address. */
  hvaOf(gpa: number): number | undefined {
    if (this.#current.length === 0) this.refresh();
    const slot = this.#current.find(
      (candidate) => gpa >= candidate.gpa && gpa < candidate.gpa + candidate.size,
    );
    return slot && slot.hva + (gpa - slot.gpa);
  }
}

function same(a: readonly Memslot[], b: readonly Memslot[]): boolean {
  return (
    a.length === b.length &&
    a.every(
      (slot, i) =>
        slot.gpa === b[i]!.gpa &&
        slot.size === b[i]!.size &&
        slot.hva === b[i]!.hva &&
        slot.readonly === b[i]!.readonly,
    )
  );
}

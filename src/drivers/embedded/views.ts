import { ACCESS, type Gfn, type Vcpu, type Views } from '../../machine/index.ts';
import { type GuestMemory, UNBACKED } from './memory.ts';

/** Views that a machine can have, view 0 included. */
const VIEW_LIMIT = 16;

/** One view of guest-physical memory: who may do what to which frame, and which frame is shown where. */
export class MemoryView {
  readonly number: number;
  readonly #memory: GuestMemory;
  /** Allowed access of the frames that are restricted. */
  readonly #access = new Map<Gfn, number>();
  readonly #shown = new Map<Gfn, Gfn>();
  /** Frames whose writes are allowed by 128-byte part: bit i is the i-th part. */
  readonly #bitmaps = new Map<Gfn, number>();
  /** Whether the guest may switch to it with VMFUNC. */
  visible = false;

  constructor(number: number, memory: GuestMemory) {
    this.number = number;
    this.#memory = memory;
  }

  accessOf(gfn: Gfn): number {
    return this.#access.get(gfn) ?? ACCESS.all;
  }

  restrict(gfn: Gfn, access: number): void {
    if ((access & ACCESS.all) === ACCESS.all) this.#access.delete(gfn);
    else this.#access.set(gfn, access & ACCESS.all);
  }

  /** Whether the bitmap of the frame allows a write to `size` bytes from `offset` in the page. */
  allowsWrite(gfn: Gfn, offset: number, size: number): boolean {
    const bitmap = this.#bitmaps.get(gfn);
    if (bitmap === undefined) return false;
    for (let part = offset >>> 7; part <= (offset + size - 1) >>> 7; part++) {
      if ((bitmap & (1 << part)) === 0) return false;
    }
    return true;
  }

  setBitmap(gfn: Gfn, bitmap: number): void {
    if (bitmap >>> 0 === 0) this.#bitmaps.delete(gfn);
    else this.#bitmaps.set(gfn, bitmap);
  }

  /** Offset in the backing store of what the guest sees at `gfn`, or UNBACKED. */
  frameOf(gfn: Gfn): number {
    return this.#memory.frameOf(this.#shown.size === 0 ? gfn : (this.#shown.get(gfn) ?? gfn));
  }

  show(from: Gfn, to: Gfn): void {
    if (from === to) this.#shown.delete(from);
    else this.#shown.set(from, to);
  }

  clear(): void {
    this.#access.clear();
    this.#shown.clear();
    this.#bitmaps.clear();
    this.visible = false;
  }
}

/** A processor, as far as views are concerned. */
export interface ViewedCpu {
  readonly view: MemoryView;
  setView(view: MemoryView): void;
  flush(): void;
}

/** The views of a machine. */
export class MemoryViews implements Views {
  readonly limit = VIEW_LIMIT;
  readonly #memory: GuestMemory;
  readonly #cpuOf: (vcpu: Vcpu) => ViewedCpu;
  readonly #cpus: readonly ViewedCpu[];
  readonly #views: (MemoryView | undefined)[];

  /** `cpus` is the machine's own, growing list. */
  constructor(memory: GuestMemory, cpus: readonly ViewedCpu[], cpuOf: (vcpu: Vcpu) => ViewedCpu) {
    this.#memory = memory;
    this.#cpus = cpus;
    this.#cpuOf = cpuOf;
    this.#views = [new MemoryView(0, memory)];
  }

  get(view: number): MemoryView | undefined {
    return this.#views[view];
  }

  exists(view: number): boolean {
    return this.#views[view] !== undefined;
  }

  create(): number | undefined {
    for (let number = 1; number < VIEW_LIMIT; number++) {
      if (this.#views[number]) continue;
      this.#views[number] = new MemoryView(number, this.#memory);
      return number;
    }
    return undefined;
  }

  destroy(view: number): boolean {
    if (view === 0 || !this.exists(view) || this.#cpus.some((cpu) => cpu.view.number === view)) return false;
    this.#views[view] = undefined;
    return true;
  }

  current(vcpu: Vcpu): number {
    return this.#cpuOf(vcpu).view.number;
  }

  switch(vcpu: Vcpu, view: number): boolean {
    const target = this.#views[view];
    if (!target) return false;
    this.#cpuOf(vcpu).setView(target);
    return true;
  }

  /** Visibility is the same for every vCPU. */
  setVisible(_vcpu: Vcpu, view: number, visible: boolean): boolean {
    const target = this.#views[view];
    if (target) target.visible = visible;
    return target !== undefined;
  }

  changeGfn(view: number, from: Gfn, to: Gfn): boolean {
    const target = this.#views[view];
    if (!target || (from !== to && this.#memory.frameOf(to) === UNBACKED)) return false;
    target.show(from, to);
    this.flush();
    return true;
  }

  setWriteBitmap(view: number, gfn: Gfn, bitmap: number): boolean {
    const target = this.#views[view];
    if (!target || this.#memory.frameOf(gfn) === UNBACKED) return false;
    target.setBitmap(gfn, bitmap);
    this.flush();
    return true;
  }

  /** Sets the allowed access of a frame. False when there is no such view. */
  restrict(view: number, gfn: Gfn, access: number): boolean {
    const target = this.#views[view];
    if (!target) return false;
    target.restrict(gfn, access);
    this.flush();
    return true;
  }

  /** Removes every restriction and every view but 0. */
  clear(): void {
    for (const view of this.#views) view?.clear();
    this.#views.length = 1;
    for (const cpu of this.#cpus) cpu.setView(this.#views[0]!);
  }

  /** Makes every vCPU look again at what it may access. */
  flush(): void {
    for (const cpu of this.#cpus) cpu.flush();
  }
}

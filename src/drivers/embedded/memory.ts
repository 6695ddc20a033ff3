import { KvmiError } from '../../error.ts';
import { GPA_LIMIT, type MemoryRegion, PAGE_SIZE, type PhysicalMemory } from '../../machine/index.ts';

/** Frames that can be added at run time. */
const SPARE_FRAMES = 64;
/** Offsets in the backing store must fit an int32. */
const SIZE_LIMIT = 2 ** 31 - (SPARE_FRAMES + 1) * PAGE_SIZE;
/** Keeps code that was decoded from memory in step with it. */
export interface CodeWatch {
  /** Whether a write to the frame must be told. */
  hasCode(frame: number): boolean;
  /** Bytes of the frame were written; offsets in the page. @internal */
  wrote(frame: number, from: number, to: number): void;
}

const NO_CODE: CodeWatch = { hasCode: () => false, wrote() {} };

/** What `frameOf` answers for an address with nothing behind it. */
export const UNBACKED = -1;

/**
 * The guest's memory: one run of RAM from address 0, and frames added later. RAM, the spare frames and a page of
 * 0xff that stands for unbacked addresses lie in one array; a *frame* here is a page's offset in it.
 */
export class GuestMemory implements PhysicalMemory {
  /** Size of the RAM that the machine was made with, in bytes. */
  readonly size: number;
  /** @internal */
  readonly bytes: Uint8Array;
  /** @internal */
  readonly data: DataView;
  /** Frame that reads as 0xff. */
  readonly unbacked: number;
  /** Told of writes. */
  code: CodeWatch = NO_CODE;
  /** Counts writes from outside the guest. @internal */
  writes = 0;
  readonly #ramPages: number;
  /** Frames added at run time by gfn. */
  readonly #added = new Map<number, number>();
  readonly #spare: number[] = [];
  #regions: readonly MemoryRegion[] = [];

  /** @internal */
  constructor(size: number) {
    if (!Number.isInteger(size) || size < 1024 * 1024 || size > SIZE_LIMIT || size % PAGE_SIZE !== 0) {
      throw new KvmiError('E_ARGUMENT', `memory: ${size} is not a usable memory size`, {
        hint: `Give a multiple of ${PAGE_SIZE} from 1 MiB to ${SIZE_LIMIT} bytes.`,
      });
    }
    this.size = size;
    this.#ramPages = size / PAGE_SIZE;
    this.unbacked = size + SPARE_FRAMES * PAGE_SIZE;
    const buffer = new ArrayBuffer(this.unbacked + PAGE_SIZE);
    this.bytes = new Uint8Array(buffer);
    this.data = new DataView(buffer);
    this.bytes.fill(0xff, this.unbacked);
    for (let i = SPARE_FRAMES - 1; i >= 0; i--) this.#spare.push(size + i * PAGE_SIZE);
    this.#updateRegions();
  }

  get regions(): readonly MemoryRegion[] {
    return this.#regions;
  }

  /** Offset in the backing store of the page at `gfn`, or {@link UNBACKED}. @internal */
  frameOf(gfn: number): number {
    if (gfn < this.#ramPages) return gfn * PAGE_SIZE;
    return this.#added.get(gfn) ?? UNBACKED;
  }

  read(gpa: number, into: Uint8Array): boolean {
    return this.#pieces(gpa, into.length, (at, from, length) => {
      into.set(this.bytes.subarray(at, at + length), from);
    });
  }

  write(gpa: number, from: Uint8Array): boolean {
    if (!this.#pieces(gpa, from.length, () => {})) return false;
    this.writes++;
    return this.#pieces(gpa, from.length, (at, begin, length) => {
      this.bytes.set(from.subarray(begin, begin + length), at);
      this.wrote(at, length);
    });
  }

  /**
   * The memory itself. Guest code that is changed through a view, rather than with `write`, may go on running as
   * it was.
   */
  view(gpa: number, size: number): Uint8Array | undefined {
    return gpa >= 0 && size >= 0 && gpa + size <= this.size
      ? this.bytes.subarray(gpa, gpa + size)
      : undefined;
  }

  /** To be called after bytes of one page changed, so that code decoded from them is decoded again. */
  wrote(at: number, length: number): void {
    const frame = at - (at % PAGE_SIZE);
    if (this.code.hasCode(frame)) this.code.wrote(frame, at - frame, at - frame + length);
  }

  /** Puts a zeroed page at `gfn`. False when something is there, or no page is left. @internal */
  addFrame(gfn: number): boolean {
    if (!(gfn >= 0 && gfn < GPA_LIMIT / PAGE_SIZE) || this.frameOf(gfn) !== UNBACKED) return false;
    const frame = this.#spare.pop();
    if (frame === undefined) return false;
    this.bytes.fill(0, frame, frame + PAGE_SIZE);
    this.wrote(frame, PAGE_SIZE);
    this.#added.set(gfn, frame);
    this.#updateRegions();
    return true;
  }

  /** Takes back {@link addFrame}. False when `gfn` was not added. @internal */
  removeFrame(gfn: number): boolean {
    const frame = this.#added.get(gfn);
    if (frame === undefined) return false;
    this.#added.delete(gfn);
    this.#spare.push(frame);
    this.#updateRegions();
    return true;
  }

  /** Back to the state of a machine that was just made: no content, no added frames. @internal */
  reset(): void {
    this.bytes.fill(0, 0, this.unbacked);
    for (const gfn of [...this.#added.keys()]) this.removeFrame(gfn);
    for (let frame = 0; frame < this.unbacked; frame += PAGE_SIZE) this.wrote(frame, PAGE_SIZE);
  }

  #updateRegions(): void {
    const regions: { gpa: number; size: number; readonly: boolean }[] = [
      { gpa: 0, size: this.size, readonly: false },
    ];
    for (const gfn of [...this.#added.keys()].sort((a, b) => a - b)) {
      const last = regions.at(-1)!;
      if (last.gpa + last.size === gfn * PAGE_SIZE) last.size += PAGE_SIZE;
      else regions.push({ gpa: gfn * PAGE_SIZE, size: PAGE_SIZE, readonly: false });
    }
    this.#regions = regions;
  }

  /** Calls `each(offset in the backing store, offset in the range, length)` page by page; false at a hole. */
  #pieces(gpa: number, size: number, each: (at: number, from: number, length: number) => void): boolean {
    if (!(gpa >= 0 && gpa + size <= GPA_LIMIT)) return false;
    for (let done = 0; done < size; ) {
      const offset = (gpa + done) % PAGE_SIZE;
      const frame = this.frameOf((gpa + done - offset) / PAGE_SIZE);
      if (frame === UNBACKED) return false;
      const length = Math.min(size - done, PAGE_SIZE - offset);
      each(frame + offset, done, length);
      done += length;
    }
    return true;
  }
}

import { getU32, getU64, putU32, putU64 } from '../../src/abi/bytes.ts';
import { bytesBackend, type Paging, type PagingMode, RegionMemory } from '../../src/machine/index.ts';

export type PagedMode = Exclude<PagingMode, 'none'>;

export const PRESENT = 1n;
export const WRITABLE = 2n;
export const USER = 4n;
export const LARGE = 0x80n;
export const NX = 1n << 63n;

/** Shifts of the levels, from the top. */
export const SHIFTS: Readonly<Record<PagedMode, readonly number[]>> = {
  '32-bit': [22, 12],
  '32-bit-pse': [22, 12],
  pae: [30, 21, 12],
  '4-level': [39, 30, 21, 12],
  '5-level': [48, 39, 30, 21, 12],
};

export interface MapOptions {
  /** log2 of the page size; 12 unless told. */
  readonly shift?: number;
  /** Flags of the leaf besides present; writable unless told. */
  readonly flags?: bigint;
  /** Flags of the tables above it besides present; writable and user unless told. */
  readonly tableFlags?: bigint;
}

/** Page tables written into an array, as a guest's kernel would. Guest-physical address 0 is the start of `bytes`. */
export class PageTables {
  readonly bytes: Uint8Array;
  readonly memory: RegionMemory;
  readonly paging: Paging;
  readonly #mode: PagedMode;
  #free = 0x1000;

  constructor(mode: PagedMode, { nx = true, size = 0x100000 } = {}) {
    this.#mode = mode;
    this.bytes = new Uint8Array(size);
    this.memory = new RegionMemory([{ gpa: 0, size, readonly: false, backend: bytesBackend(this.bytes) }]);
    this.paging = { mode, root: this.allocate(), nx };
  }

  /** A zeroed page of `bytes`. */
  allocate(): number {
    const page = this.#free;
    this.#free += 0x1000;
    if (this.#free > this.bytes.length) throw new Error('page-table array is full');
    return page;
  }

  get entrySize(): number {
    return this.#mode.startsWith('32-bit') ? 4 : 8;
  }

  get(at: number): bigint {
    return this.entrySize === 4 ? BigInt(getU32(this.bytes, at)) : getU64(this.bytes, at);
  }

  set(at: number, value: bigint): void {
    if (this.entrySize === 4) putU32(this.bytes, at, Number(value));
    else putU64(this.bytes, at, value);
  }

  /** Where the entry for `gva` at the level with this shift is; the tables above it are made when missing. */
  entryFor(gva: bigint, shift: number, tableFlags = WRITABLE | USER): number {
    let table = this.paging.root;
    for (const at of SHIFTS[this.#mode]) {
      const top = at === SHIFTS[this.#mode][0];
      const entries = this.#mode === 'pae' && top ? 4n : 4096n / BigInt(this.entrySize);
      const entry = table + Number((gva >> BigInt(at)) % entries) * this.entrySize;
      if (at === shift) return entry;
      if ((this.get(entry) & PRESENT) === 0n) {
        const flags = this.#mode === 'pae' && top ? 0n : tableFlags;
        this.set(entry, BigInt(this.allocate()) | flags | PRESENT);
      }
      table = Number(this.get(entry) & 0xffffffffff000n);
    }
    throw new Error(`${this.#mode} has no level with shift ${shift}`);
  }

  map(gva: bigint, gpa: number, { shift = 12, flags = WRITABLE, tableFlags }: MapOptions = {}): void {
    const large = shift === 12 ? 0n : LARGE;
    this.set(this.entryFor(gva, shift, tableFlags), BigInt(gpa) | flags | large | PRESENT);
  }
}

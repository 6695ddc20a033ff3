import { KvmiError } from '../error.ts';
import type { Gva } from '../machine/index.ts';

export interface Symbol {
  readonly name: string;
  readonly address: Gva;
  /** As nm(1) prints it: T and t for code, D and d for data, B and b for zeroed data, R and r for constants, … */
  readonly type: string;
}

/** A symbol and how far behind its start an address lies. */
export interface SymbolAt extends Symbol {
  readonly offset: number;
}

/** The image of a kernel has no more room (KERNEL_IMAGE_SIZE). */
const MAX_DISTANCE = 1n << 30n;

/** What a {@link SymbolTable} is made of: typed arrays only, so that it can be kept in a file as it is. */
export interface SymbolArrays {
  /** All names, one after the other. */
  readonly text: Uint8Array;
  /** Where each name starts in `text`, and where the last one ends. */
  readonly starts: Uint32Array;
  readonly types: Uint8Array;
  readonly addresses: BigUint64Array;
  /** Open addressing by {@link hashOf}: index + 1, 0 for free; its length is a power of two. */
  readonly slots: Int32Array;
}

const FNV_OFFSET = 0x811c9dc5;
const FNV_PRIME = 0x01000193;

function hashOf(text: Uint8Array, start: number, end: number): number {
  let hash = FNV_OFFSET;
  for (let i = start; i < end; i++) hash = Math.imul(hash ^ text[i]!, FNV_PRIME);
  return (hash ^ (hash >>> 15)) >>> 0;
}

/** The kernel's symbols, both ways. A hundred thousand names stay bytes until somebody wants to see one. */
export class SymbolTable {
  readonly arrays: SymbolArrays;
  /** Indexes by ascending address; undefined when the table is in that order anyway. */
  #order: Uint32Array | undefined | null = null;

  constructor(arrays: SymbolArrays) {
    this.arrays = arrays;
  }

  /** Builds the index over names. */
  static of(parts: Omit<SymbolArrays, 'slots'>): SymbolTable {
    const { text, starts, types } = parts;
    const slots = new Int32Array(2 ** Math.ceil(Math.log2(types.length * 2 + 2)));
    const mask = slots.length - 1;
    for (let i = 0; i < types.length; i++) {
      let slot = hashOf(text, starts[i]!, starts[i + 1]!) & mask;
      while (slots[slot] !== 0) slot = (slot + 1) & mask;
      slots[slot] = i + 1;
    }
    return new SymbolTable({ ...parts, slots });
  }

  get size(): number {
    return this.arrays.types.length;
  }

  name(index: number): string {
    const { text, starts } = this.arrays;
    return Buffer.from(text.buffer, text.byteOffset, text.length).toString(
      'latin1',
      starts[index],
      starts[index + 1],
    );
  }

  at(index: number): Symbol {
    const { addresses, types } = this.arrays;
    return {
      name: this.name(index),
      address: addresses[index]!,
      type: String.fromCharCode(types[index]!),
    };
  }

  /** The address of the first symbol with this name. */
  address(name: string): Gva | undefined {
    for (const index of this.#indexes(name)) return this.arrays.addresses[index];
    return undefined;
  }

  /** All symbols with this name: static functions of different files may share one. */
  all(name: string): Symbol[] {
    return [...this.#indexes(name)].map((index) => this.at(index));
  }

  /** As {@link address}; throws a KvmiError with code E_SYMBOL when there is none. */
  require(name: string): Gva {
    const address = this.address(name);
    if (address !== undefined) return address;
    throw new KvmiError('E_SYMBOL', `the kernel has no symbol ${name}`, {
      hint: 'Symbols of data need CONFIG_KALLSYMS_ALL; some exist only in some versions or configurations.',
      data: { name },
    });
  }

  /**
   * The symbol that `address` belongs to: the closest one at or before it. Undefined before the first, and where the
   * closest is further away than any symbol is long. What lies outside the kernel's image is no symbol's:
   * {@link Kernel.symbolAt} knows where that ends.
   */
  lookup(address: Gva): SymbolAt | undefined {
    const behind = this.#countUpTo(address);
    if (behind === 0) return undefined;
    let first = behind - 1;
    const start = this.#addressOf(first);
    if (address - start > MAX_DISTANCE) return undefined;
    while (first > 0 && this.#addressOf(first - 1) === start) first--;
    return { ...this.at(this.#indexOf(first)), offset: Number(address - start) };
  }

  /** The names of all symbols at exactly this address: identical functions are folded into one. */
  namesAt(address: Gva): string[] {
    const names: string[] = [];
    for (let i = this.#countUpTo(address) - 1; i >= 0 && this.#addressOf(i) === address; i--)
      names.push(this.name(this.#indexOf(i)));
    return names;
  }

  /** Where the next symbol starts. */
  nextAfter(address: Gva): Gva | undefined {
    const behind = this.#countUpTo(address);
    return behind < this.size ? this.#addressOf(behind) : undefined;
  }

  /** How many symbols are at or before `address`. */
  #countUpTo(address: Gva): number {
    let low = 0;
    let high = this.size;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#addressOf(middle) <= address) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** The index of the symbol that is `rank`th by address. */
  #indexOf(rank: number): number {
    const order = this.#sorted();
    return order === undefined ? rank : order[rank]!;
  }

  #addressOf(rank: number): Gva {
    return this.arrays.addresses[this.#indexOf(rank)]!;
  }

  *[globalThis.Symbol.iterator](): IterableIterator<Symbol> {
    for (let i = 0; i < this.size; i++) yield this.at(i);
  }

  *#indexes(name: string): IterableIterator<number> {
    const wanted = Buffer.from(name, 'latin1');
    const { text, starts, slots, types } = this.arrays;
    const mask = slots.length - 1;
    let slot = hashOf(wanted, 0, wanted.length) & mask;
    // A table from a file may have no free slot: the count bounds the search.
    for (let probes = 0; probes <= mask && slots[slot] !== 0; probes++) {
      const index = slots[slot]! - 1;
      slot = (slot + 1) & mask;
      if (index < 0 || index >= types.length) continue;
      const start = starts[index]!;
      if (starts[index + 1]! - start !== wanted.length) continue;
      let same = 0;
      while (same < wanted.length && text[start + same] === wanted[same]) same++;
      if (same === wanted.length) yield index;
    }
  }

  #sorted(): Uint32Array | undefined {
    if (this.#order !== null) return this.#order;
    const { addresses } = this.arrays;
    let isSorted = true;
    for (let i = 1; i < addresses.length && isSorted; i++) isSorted = addresses[i - 1]! <= addresses[i]!;
    if (isSorted) {
      this.#order = undefined;
    } else {
      const order = Uint32Array.from(addresses, (_, i) => i);
      this.#order = order.sort((a, b) =>
        addresses[a]! < addresses[b]! ? -1 : addresses[a]! > addresses[b]! ? 1 : a - b,
      );
    }
    return this.#order;
  }
}

import type { TypeSource } from '../btf/types.ts';
import {
  type Gpa,
  type Gva,
  type Paging,
  type PhysicalMemory,
  readVirtual,
  translate,
} from '../machine/index.ts';
import { UnreadableError } from '../reading/space.ts';
import { type Walk, wait } from '../reading/walk.ts';
import type { Layouts } from './layout.ts';
import type { SymbolAt, SymbolTable } from './symbols.ts';

/** A kernel that was found in guest memory: where it is, its symbols and its types. */
export interface KernelParts {
  readonly memory: PhysicalMemory;
  /** The kernel's own page tables. */
  readonly paging: Paging;
  readonly symbols: SymbolTable;
  readonly layouts: Layouts;
  /** All of the kernel's types; read from guest memory when they are first asked for. */
  readonly loadTypes: () => Walk<TypeSource>;
  /** `Linux version …`, one line. */
  readonly banner: string;
  /** As in `uname -r`. */
  readonly release: string;
  readonly buildId: string | undefined;
  /** Guest-physical address of `_text`. */
  readonly imageGpa: Gpa;
  /** Run-time address of `_text`, and of the end of the image. */
  readonly imageStart: Gva;
  readonly imageEnd: Gva;
}

/** {@link KernelParts}, with what is asked of them everywhere. */
export class Kernel implements KernelParts {
  readonly memory: PhysicalMemory;
  readonly paging: Paging;
  readonly symbols: SymbolTable;
  readonly layouts: Layouts;
  readonly loadTypes: () => Walk<TypeSource>;
  readonly banner: string;
  readonly release: string;
  readonly buildId: string | undefined;
  readonly imageGpa: Gpa;
  readonly imageStart: Gva;
  readonly imageEnd: Gva;

  constructor(parts: KernelParts) {
    this.memory = parts.memory;
    this.paging = parts.paging;
    this.symbols = parts.symbols;
    this.layouts = parts.layouts;
    this.loadTypes = parts.loadTypes;
    this.banner = parts.banner;
    this.release = parts.release;
    this.buildId = parts.buildId;
    this.imageGpa = parts.imageGpa;
    this.imageStart = parts.imageStart;
    this.imageEnd = parts.imageEnd;
  }

  /**
   * The symbol of the kernel that an address belongs to; undefined outside the image. Of symbols that are no place in
   * the image (per-CPU variables before 7.2 are distances) only what is in front of the last of them belongs to one.
   */
  symbolAt(address: Gva): SymbolAt | undefined {
    const found = this.symbols.lookup(address);
    if (found === undefined || found.offset === 0) return found;
    const isInImage = (place: Gva) => place >= this.imageStart && place < this.imageEnd;
    if (isInImage(found.address)) return isInImage(address) ? found : undefined;
    const next = this.symbols.nextAfter(address);
    return next === undefined || isInImage(next) ? undefined : found;
  }

  /** The guest-physical address behind an address of the kernel. */
  translate(gva: Gva): Walk<Gpa | undefined> {
    return wait(translate(this.memory, this.paging, gva));
  }

  /** A copy of kernel memory, however large, without keeping any of it. */
  *readBulk(gva: Gva, size: number): Walk<Uint8Array> {
    const into = Buffer.allocUnsafeSlow(size);
    if (!(yield* wait(readVirtual(this.memory, this.paging, gva, into))))
      throw new UnreadableError(gva, size);
    return into;
  }
}

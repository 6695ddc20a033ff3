import { getU64 } from '../abi/bytes.ts';
import type { Gpa, Gva } from '../machine/index.ts';
import { type GuestMemory, notBacked, type Piece, splitAtPages, windowed } from './memory.ts';

const PAGE_MASK = 0xfffn;
const DECODER = new TextDecoder('utf-8', { ignoreBOM: true });

/** What it needs of its vCPU. */
interface Translator {
  /** Where a guest-virtual address leads; undefined when nowhere. */
  translate(gva: Gva): Promise<Gpa | undefined>;
}

/** One page's part of a range, and where it is in guest-physical memory. */
interface Mapped extends Piece {
  readonly gpa: Gpa;
}

/**
 * Memory as a vCPU addresses it. Each page costs a VCPU_TRANSLATE_GVA, which the vCPU carries out: with its current
 * page tables and as a supervisor. To read without taking a running vCPU out of the guest, walk the page
 * tables with `readVirtual` of machine/ over `guest.memory`.
 */
export class VirtualMemory {
  readonly #vcpu: Translator;
  readonly #memory: GuestMemory;

  constructor(vcpu: Translator, memory: GuestMemory) {
    this.#vcpu = vcpu;
    this.#memory = memory;
  }

  /** Fills `into` from `gva` on. False when any byte of it is not mapped or not backed. */
  async read(gva: Gva, into: Uint8Array): Promise<boolean> {
    return windowed(piecesOf(gva, into.length), async ({ at, size }) => {
      const gpa = await this.#vcpu.translate(gva + BigInt(at));
      return gpa !== undefined && this.#memory.read(gpa, into.subarray(at, at + size));
    });
  }

  /** Writes `from` at `gva`. False when a page is not mapped (nothing is written) or cannot be written. */
  async write(gva: Gva, from: Uint8Array): Promise<boolean> {
    const pages: Mapped[] = [];
    const mapped = await windowed(piecesOf(gva, from.length), async (piece) => {
      const gpa = await this.#vcpu.translate(gva + BigInt(piece.at));
      if (gpa !== undefined) pages.push({ ...piece, gpa });
      return gpa !== undefined;
    });
    if (!mapped) return false;
    return windowed(pages, ({ gpa, at, size }) => this.#memory.write(gpa, from.subarray(at, at + size)));
  }

  /** A copy of `size` bytes. Throws a KvmiError with code E_NOT_BACKED when some are not mapped. */
  async readBytes(gva: Gva, size: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(size);
    if (!(await this.read(gva, bytes))) throw notBacked(BigInt.asUintN(64, gva), size);
    return bytes;
  }

  /**
   * The text at `gva` up to its zero byte, which is not part of it, or up to `limit` bytes: UTF-8, with U+FFFD for what
   * is none. No page behind the zero byte is read. Throws as {@link readBytes}.
   */
  async readString(gva: Gva, limit = 4096): Promise<string> {
    const text = new Uint8Array(limit);
    for (const { at, size } of piecesOf(gva, limit)) {
      const part = text.subarray(at, at + size);
      if (!(await this.read(gva + BigInt(at), part)))
        throw notBacked(BigInt.asUintN(64, gva + BigInt(at)), size);
      const end = part.indexOf(0);
      if (end >= 0) return DECODER.decode(text.subarray(0, at + end));
    }
    return DECODER.decode(text);
  }

  /** The eight bytes at `gva`. Throws as {@link readBytes}. */
  async u64(gva: Gva): Promise<bigint> {
    return getU64(await this.readBytes(gva, 8), 0);
  }
}

function piecesOf(gva: Gva, size: number): Piece[] {
  return splitAtPages(Number(gva & PAGE_MASK), size);
}

import { damaged } from './contents.ts';
import type { Source } from './file.ts';
import { latestPieces, type Piece } from './latest-pieces.ts';

/*
 * makedumpfile's flattened format, which QEMU 9 and older write for kdump: pieces of the real file, each with its
 * place in front, in big-endian order.
 */

export const FLATTENED_MAGIC = Buffer.from('makedumpfile\0\0\0\0', 'latin1');
const HEADER = 4096;
const PIECE_HEADER = 16;
/** QEMU's are of 16 KiB: enough for 64 GiB in the file. */
const MAX_PIECES = 1 << 22;

/** The file that a flattened one stands for. */
export class Flattened implements Source {
  readonly size: number;
  readonly #source: Source;
  readonly #pieces: readonly Piece[];

  constructor(source: Source) {
    this.#source = source;
    const pieces: Piece[] = [];
    const headers = new HeaderReader(source);
    let size = 0;
    let isSorted = true;
    for (let at = HEADER; ; ) {
      const header = headers.read(at);
      if (header === undefined) throw damaged('the flattened file is cut off');
      const start = Number(header.readBigInt64BE(0));
      const length = Number(header.readBigInt64BE(8));
      if (start < 0) break;
      if (!(length > 0 && at + PIECE_HEADER + length <= source.size)) throw damaged('a piece is cut off');
      if (pieces.length === MAX_PIECES) throw damaged(`more than ${MAX_PIECES} pieces`);
      isSorted &&= start >= size;
      pieces.push({ start, size: length, offset: at + PIECE_HEADER });
      size = Math.max(size, start + length);
      at += PIECE_HEADER + length;
    }
    this.#pieces = isSorted ? pieces : latestPieces(pieces);
    this.size = size;
  }

  read(offset: number, into: Uint8Array): boolean {
    if (!(offset >= 0 && offset + into.length <= this.size)) return false;
    into.fill(0);
    for (let index = this.#firstBehind(offset); index < this.#pieces.length; index++) {
      const piece = this.#pieces[index]!;
      const start = Math.max(offset, piece.start);
      const end = Math.min(offset + into.length, piece.start + piece.size);
      if (piece.start >= offset + into.length) break;
      const part = into.subarray(start - offset, end - offset);
      if (!this.#source.read(piece.offset + start - piece.start, part)) return false;
    }
    return true;
  }

  /** Index of the first piece that ends behind `offset`. */
  #firstBehind(offset: number): number {
    let low = 0;
    let high = this.#pieces.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      const piece = this.#pieces[middle]!;
      if (piece.start + piece.size > offset) high = middle;
      else low = middle + 1;
    }
    return low;
  }
}

/** Reads ahead where pieces are small. */
class HeaderReader {
  readonly #source: Source;
  readonly #window = Buffer.alloc(64 << 10);
  #start = 0;
  #end = 0;

  constructor(source: Source) {
    this.#source = source;
  }

  read(at: number): Buffer | undefined {
    if (at < this.#start || at + PIECE_HEADER > this.#end) {
      const isNear = at - this.#end < PIECE_HEADER;
      const size = Math.min(isNear ? this.#window.length : PIECE_HEADER, this.#source.size - at);
      if (size < PIECE_HEADER || !this.#source.read(at, this.#window.subarray(0, size))) return undefined;
      this.#start = at;
      this.#end = at + size;
    }
    return this.#window.subarray(at - this.#start, at - this.#start + PIECE_HEADER);
  }
}

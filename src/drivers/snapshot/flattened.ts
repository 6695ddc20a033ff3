import { damaged } from './contents.ts';
import { readPart, type Source } from './file.ts';

/*
 * makedumpfile's flattened format, which QEMU 9 and older write for kdump: pieces of the real file, each with its
 * place in front, in big-endian order.
 */

export const FLATTENED_MAGIC = Buffer.from('makedumpfile\0\0\0\0', 'latin1');
const HEADER = 4096;
const PIECE_HEADER = 16;
const MAX_PIECES = 16_000_000;

interface Piece {
  readonly start: number;
  readonly size: number;
  /** In the flattened file. */
  readonly offset: number;
}

/** The file that a flattened one stands for. */
export class Flattened implements Source {
  readonly size: number;
  readonly #source: Source;
  readonly #pieces: readonly Piece[];

  constructor(source: Source) {
    this.#source = source;
    const pieces: Piece[] = [];
    let size = 0;
    for (let at = HEADER; pieces.length < MAX_PIECES; ) {
      const header = readPart(source, at, PIECE_HEADER);
      if (header === undefined) throw damaged('the flattened file is cut off');
      const start = Number(header.readBigInt64BE(0));
      const length = Number(header.readBigInt64BE(8));
      if (start < 0) break;
      if (!(length > 0 && at + PIECE_HEADER + length <= source.size)) throw damaged('a piece is cut off');
      pieces.push({ start, size: length, offset: at + PIECE_HEADER });
      size = Math.max(size, start + length);
      at += PIECE_HEADER + length;
    }
    this.#pieces = withoutOverlap(pieces);
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

/** Sorted by place; where two overlap, the later one counts, as if it had been written over the other. */
function withoutOverlap(pieces: readonly Piece[]): Piece[] {
  const sorted = pieces
    .map((piece, order) => ({ ...piece, order }))
    .sort((a, b) => a.start - b.start || a.order - b.order);
  const result: (Piece & { order: number })[] = [];
  for (const piece of sorted) {
    const last = result.at(-1);
    if (last === undefined || last.start + last.size <= piece.start) {
      result.push(piece);
      continue;
    }
    const lastEnd = last.start + last.size;
    const end = piece.start + piece.size;
    if (piece.order > last.order) {
      result[result.length - 1] = { ...last, size: piece.start - last.start };
      if (result[result.length - 1]!.size === 0) result.pop();
      result.push(piece);
      if (lastEnd > end)
        result.push({ ...last, start: end, size: lastEnd - end, offset: last.offset + end - last.start });
    } else if (end > lastEnd) {
      result.push({
        ...piece,
        start: lastEnd,
        size: end - lastEnd,
        offset: piece.offset + lastEnd - piece.start,
      });
    }
  }
  return result;
}

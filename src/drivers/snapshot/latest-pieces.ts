/** A part of a file, and where it comes from; of two that overlap the one with the larger `offset` counts. */
export interface Piece {
  readonly start: number;
  readonly size: number;
  readonly offset: number;
}

/** Pieces by start, without overlap: where several are, the latest one. Changes the order of `pieces`. */
export function latestPieces(pieces: Piece[]): Piece[] {
  pieces.sort((a, b) => a.start - b.start);
  const result: Piece[] = [];
  const open = new LatestFirst();
  let next = 0;
  for (let at = 0; ; ) {
    while (next < pieces.length && pieces[next]!.start <= at) open.push(pieces[next++]!);
    while (open.first !== undefined && endOf(open.first) <= at) open.removeFirst();
    const following = pieces[next]?.start;
    const { first } = open;
    if (first !== undefined) {
      const end = Math.min(endOf(first), following ?? Number.POSITIVE_INFINITY);
      result.push({ start: at, size: end - at, offset: first.offset + at - first.start });
      at = end;
    } else if (following !== undefined) at = following;
    else return result;
  }
}

function endOf({ start, size }: Piece): number {
  return start + size;
}

/** A heap: the piece with the largest offset is first. */
class LatestFirst {
  readonly #pieces: Piece[] = [];

  get first(): Piece | undefined {
    return this.#pieces[0];
  }

  push(piece: Piece): void {
    const pieces = this.#pieces;
    let at = pieces.push(piece) - 1;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (pieces[parent]!.offset >= piece.offset) break;
      pieces[at] = pieces[parent]!;
      at = parent;
    }
    pieces[at] = piece;
  }

  removeFirst(): void {
    const pieces = this.#pieces;
    const last = pieces.pop()!;
    if (pieces.length === 0) return;
    let at = 0;
    for (let child = 1; child < pieces.length; child = 2 * at + 1) {
      const right = pieces[child + 1];
      if (right !== undefined && right.offset > pieces[child]!.offset) child++;
      if (pieces[child]!.offset <= last.offset) break;
      pieces[at] = pieces[child]!;
      at = child;
    }
    pieces[at] = last;
  }
}

import { getU16, getU32 } from '../abi/bytes.ts';
import { HEADER_SIZE, MAX_PAYLOAD, ProtocolError } from './header.ts';

/**
 * Takes one whole message and says whether the next may follow at once. `payload` lies in the receive
 * buffer: it is valid until the next `push`.
 */
export type FrameHandler = (id: number, seq: number, payload: Uint8Array) => boolean;

/**
 * Cuts a byte stream into messages, however it was split on the way.
 *
 * Messages that lie whole in a chunk are handed on without a copy. At most one incomplete message is
 * kept, in a buffer that is allocated once.
 */
export class FrameDecoder {
  readonly #handler: FrameHandler;
  readonly #partial = new Uint8Array(HEADER_SIZE + MAX_PAYLOAD);
  #partialLength = 0;

  constructor(handler: FrameHandler) {
    this.#handler = handler;
  }

  /** Bytes of an incomplete message that are kept. */
  get pending(): number {
    return this.#partialLength;
  }

  /**
   * Hands on every whole message in what was received so far.
   *
   * @returns how many bytes of `chunk` were taken: all of them, unless the handler asked to wait; then
   * the rest has to be pushed again later.
   * @throws ProtocolError when a header announces more than MAX_PAYLOAD bytes.
   */
  push(chunk: Uint8Array): number {
    let at = 0;
    if (this.#partialLength > 0) {
      at = this.#fill(chunk, 0, HEADER_SIZE);
      if (this.#partialLength < HEADER_SIZE) return at;
      const total = HEADER_SIZE + checkedSize(this.#partial, 0);
      at = this.#fill(chunk, at, total);
      if (this.#partialLength < total) return at;
      this.#partialLength = 0;
      if (!this.#handOn(this.#partial, 0, total)) return at;
    }
    while (chunk.length - at >= HEADER_SIZE) {
      const end = at + HEADER_SIZE + checkedSize(chunk, at);
      if (end > chunk.length) break;
      const more = this.#handOn(chunk, at, end);
      at = end;
      if (!more) return at;
    }
    return this.#fill(chunk, at, chunk.length - at);
  }

  #handOn(bytes: Uint8Array, at: number, end: number): boolean {
    return this.#handler(getU16(bytes, at), getU32(bytes, at + 4), bytes.subarray(at + HEADER_SIZE, end));
  }

  /** Copies from `chunk` until `goal` bytes are kept or it is used up. Returns the new position in it. */
  #fill(chunk: Uint8Array, at: number, goal: number): number {
    const end = Math.min(chunk.length, at + Math.max(0, goal - this.#partialLength));
    this.#partial.set(chunk.subarray(at, end), this.#partialLength);
    this.#partialLength += end - at;
    return end;
  }
}

function checkedSize(bytes: Uint8Array, at: number): number {
  const size = getU16(bytes, at + 2);
  if (size <= MAX_PAYLOAD) return size;
  const id = getU16(bytes, at);
  throw new ProtocolError(`message ${id} announces ${size} bytes; at most ${MAX_PAYLOAD} are allowed`, {
    id,
    size,
  });
}

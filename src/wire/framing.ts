import { getU16, getU32 } from '../abi/bytes.ts';
import { HEADER_SIZE, MAX_PAYLOAD, ProtocolError } from './header.ts';

/**
 * Takes one whole message and says whether the next may follow at once. `payload` is never written to
 * again: it may be kept as long as the chunk that it arrived in may be.
 */
export type FrameHandler = (id: number, seq: number, payload: Uint8Array) => boolean;

/**
 * Cuts a byte stream into messages, however it was split on the way.
 *
 * Messages that lie whole in a chunk are handed on without a copy. At most one incomplete message is
 * kept, in a buffer of the size that its header announces.
 */
export class FrameDecoder {
  readonly #handler: FrameHandler;
  readonly #header = new Uint8Array(HEADER_SIZE);
  /** The incomplete message: the header alone as long as that is incomplete itself. */
  #partial = this.#header;
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
      at = this.#keep(chunk, 0);
      if (this.#partialLength < HEADER_SIZE || this.#partialLength < this.#partial.length) return at;
      const message = this.#partial;
      this.#partial = this.#header;
      this.#partialLength = 0;
      if (!this.#handOn(message, 0, message.length)) return at;
    }
    while (chunk.length - at >= HEADER_SIZE) {
      const end = at + HEADER_SIZE + checkedSize(chunk, at);
      if (end > chunk.length) break;
      const more = this.#handOn(chunk, at, end);
      at = end;
      if (!more) return at;
    }
    return this.#keep(chunk, at);
  }

  #handOn(bytes: Uint8Array, at: number, end: number): boolean {
    return this.#handler(getU16(bytes, at), getU32(bytes, at + 4), bytes.subarray(at + HEADER_SIZE, end));
  }

  /** Copies from `chunk` until the incomplete message is complete or the chunk is used up. Returns the new position. */
  #keep(chunk: Uint8Array, at: number): number {
    const next = this.#fill(chunk, at);
    if (this.#partial !== this.#header || this.#partialLength < HEADER_SIZE) return next;
    const size = checkedSize(this.#header, 0);
    if (size === 0) return next;
    this.#partial = new Uint8Array(HEADER_SIZE + size);
    this.#partial.set(this.#header);
    return this.#fill(chunk, next);
  }

  #fill(chunk: Uint8Array, at: number): number {
    const end = Math.min(chunk.length, at + this.#partial.length - this.#partialLength);
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

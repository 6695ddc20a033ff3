import type { Gva } from '../machine/index.ts';
import type { Question } from './question.ts';

/** Addresses in the upper half, where kernels are, aligned as every structure is. */
export function isKernelPointer(gva: Gva, alignment = 8n): boolean {
  return gva >= 0xff00_0000_0000_0000n && gva % alignment === 0n;
}

/** Bounds one walk over a container of a kernel. */
export class Bounds {
  readonly #question: Question;
  readonly #what: string;
  readonly #seen = new Set<Gva>();

  constructor(question: Question, what: string) {
    this.#question = question;
    this.#what = what;
  }

  /** Whether to go on with what is at `gva`; notes why when not. */
  allows(gva: Gva): boolean {
    if (!isKernelPointer(gva)) return this.#end(`leads to 0x${gva.toString(16)}, which is no address`);
    if (this.#seen.has(gva)) return this.#end('goes in a circle');
    const { limit } = this.#question;
    if (this.#seen.size >= limit) return this.#end(`has more than ${limit} entries`);
    this.#seen.add(gva);
    return (this.#seen.size & 63) !== 0 || this.#question.hasTime();
  }

  #end(why: string): false {
    this.#question.note(`${this.#what} ${why}`);
    return false;
  }
}

/** The linear addresses at which every processor of a machine stops. */
export class ProbeAddresses {
  /** By the low half: the high halves. */
  readonly #addresses = new Map<number, Set<number>>();
  readonly #offsets = new Set<number>();

  add(lo: number, hi: number): void {
    const halves = this.#addresses.get(lo);
    if (halves) halves.add(hi);
    else this.#addresses.set(lo, new Set([hi]));
    this.#offsets.add(lo & 0xfff);
  }

  delete(lo: number, hi: number): void {
    const halves = this.#addresses.get(lo);
    halves?.delete(hi);
    if (halves?.size === 0) this.#addresses.delete(lo);
    this.#offsets.clear();
    for (const low of this.#addresses.keys()) this.#offsets.add(low & 0xfff);
  }

  has(lo: number, hi: number): boolean {
    return this.#addresses.get(lo)?.has(hi) === true;
  }

  /** Whether one is at this offset of some page: a page is decoded once, whatever it is mapped to. */
  hasOffset(offset: number): boolean {
    return this.#offsets.has(offset);
  }
}

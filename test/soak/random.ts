import { createHash } from 'node:crypto';

const MODULUS = 0x7fffffff;

/** Park and Miller's generator: the same values again with the same seed. */
export class Random {
  #state: number;

  /** `path` tells one use of a seed from another. */
  constructor(...path: readonly (number | string)[]) {
    const digest = createHash('sha256').update(path.join('/')).digest();
    this.#state = (digest.readUInt32LE(0) % (MODULUS - 1)) + 1;
  }

  /** From 0 on, below 1. */
  share(): number {
    this.#state = (this.#state * 48271) % MODULUS;
    return (this.#state - 1) / (MODULUS - 1);
  }

  /** A time in milliseconds, up to `longest`; with a higher `power` it is more often short. */
  time(longest: number, power = 1): number {
    return longest * this.share() ** power;
  }

  /** One of them, each as often as its weight says. */
  pick<T extends { readonly weight: number }>(choices: readonly T[]): T {
    const total = choices.reduce((sum, { weight }) => sum + weight, 0);
    let at = this.share() * total;
    for (const choice of choices) {
      at -= choice.weight;
      if (at < 0) return choice;
    }
    return choices.at(-1)!;
  }
}

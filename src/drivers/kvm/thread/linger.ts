import { libc } from '../../../system/libc.ts';

/** How long a stop is waited for, in ms: longer than a single step takes, shorter than a thread takes to be woken twice. */
const PATIENCE_MS = 0.04;
/** How long the event loop is kept from its turn at most, in ms. */
const BURST_MS = 1;
/** How many times in a row waiting is left out at most after it was in vain. */
const MOST_LEFT_OUT = 63;

/**
 * Waits for the next stop without sleeping, where stops come in quick succession: falling asleep and being woken costs
 * more than a single step of a guest. Where they do not, it soon gives up trying.
 */
export class Linger {
  #expected = false;
  #penalty = 0;
  #leftOut = 0;

  /** A vCPU was let go after a stop, with something armed. */
  expect(): void {
    this.#expected = true;
  }

  /** Calls `check`, which tells whether a stop has come and handles it, as long as the next one is expected soon. */
  wait(check: () => boolean): void {
    const end = performance.now() + BURST_MS;
    while (this.#expected && performance.now() < end) {
      this.#expected = false;
      if (this.#leftOut > 0) this.#leftOut--;
      else if (comesSoon(check)) this.#penalty = 0;
      else {
        this.#penalty = Math.min(2 * this.#penalty + 1, MOST_LEFT_OUT);
        this.#leftOut = this.#penalty;
      }
    }
  }
}

function comesSoon(check: () => boolean): boolean {
  const { schedYield } = libc();
  const end = performance.now() + PATIENCE_MS;
  do {
    if (check()) return true;
    schedYield();
  } while (performance.now() < end);
  return false;
}

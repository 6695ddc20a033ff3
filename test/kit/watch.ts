import { setTimeout as delay } from 'node:timers/promises';

const INTERVAL_MS = 5;

/** Asks a question over and over, and notes how long the longest answer took. */
export class Watch {
  #running = true;
  #longest = 0;
  readonly #done: Promise<void>;

  constructor(ask: () => Promise<unknown>) {
    this.#done = this.#run(ask);
    // Reported by stop().
    this.#done.catch(() => {});
  }

  async #run(ask: () => Promise<unknown>): Promise<void> {
    while (this.#running) {
      const begin = performance.now();
      await ask();
      this.#longest = Math.max(this.#longest, performance.now() - begin);
      await delay(INTERVAL_MS);
    }
  }

  /** Stops asking. Gives the longest time in milliseconds; rejects when a question was not answered. */
  async stop(): Promise<number> {
    this.#running = false;
    await this.#done;
    return this.#longest;
  }
}

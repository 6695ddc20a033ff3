import { type Deferred, deferred } from '../awaitable.ts';

/** How many items may wait before the sender is slowed down. */
const CAPACITY = 256;

/** Hands items from callbacks to one reader. A full one slows the sender down instead of growing or losing items. */
export class Mailbox<T> {
  readonly #items: T[] = [];
  #ended = false;
  #arrival: Deferred<void> | undefined;
  #room: Deferred<void> | undefined;

  /** Adds an item. What is returned resolves when there is room for more; undefined: there is. */
  put(item: T): Promise<void> | undefined {
    if (this.#ended) return undefined;
    this.#items.push(item);
    this.#arrival?.resolve();
    if (this.#items.length < CAPACITY) return undefined;
    this.#room ??= deferred<void>();
    return this.#room.promise;
  }

  /** Lets the reader take what is there, and nothing after it. */
  end(): void {
    this.#ended = true;
    this.#arrival?.resolve();
    this.#room?.resolve();
  }

  async *read(): AsyncGenerator<T> {
    for (;;) {
      const item = this.#items.shift();
      if (item !== undefined) {
        if (this.#items.length === 0) {
          this.#room?.resolve();
          this.#room = undefined;
        }
        yield item;
      } else if (this.#ended) {
        return;
      } else {
        this.#arrival = deferred<void>();
        await this.#arrival.promise;
      }
    }
  }
}

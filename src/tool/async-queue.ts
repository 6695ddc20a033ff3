import { type Deferred, deferred } from '../awaitable.ts';

/** Values that are produced at any time and taken one after another with `for await`. */
export class AsyncQueue<T> implements AsyncIterableIterator<T> {
  readonly #items: T[] = [];
  readonly #takers: Deferred<IteratorResult<T>>[] = [];
  readonly #onReturn: (rest: readonly T[]) => void;
  #ended = false;

  /** `onReturn` gets what was not taken when the consumer leaves its loop. */
  constructor(onReturn: (rest: readonly T[]) => void) {
    this.#onReturn = onReturn;
  }

  get length(): number {
    return this.#items.length;
  }

  push(item: T): void {
    if (this.#ended) return;
    const taker = this.#takers.shift();
    if (taker) taker.resolve({ done: false, value: item });
    else this.#items.push(item);
  }

  /** Nothing more comes; what is there can still be taken. */
  end(): void {
    this.#ended = true;
    for (const taker of this.#takers.splice(0)) taker.resolve({ done: true, value: undefined });
  }

  next(): Promise<IteratorResult<T>> {
    const item = this.#items.shift();
    if (item !== undefined) return Promise.resolve({ done: false, value: item });
    if (this.#ended) return Promise.resolve({ done: true, value: undefined });
    const taker = deferred<IteratorResult<T>>();
    this.#takers.push(taker);
    return taker.promise;
  }

  return(): Promise<IteratorResult<T>> {
    this.end();
    this.#onReturn(this.#items.splice(0));
    return Promise.resolve({ done: true, value: undefined });
  }

  [Symbol.asyncIterator](): AsyncIterableIterator<T> {
    return this;
  }
}

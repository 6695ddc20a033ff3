import { type Awaitable, isPending } from '../awaitable.ts';

/**
 * A computation that reads guest memory. It yields whatever it has to wait for and nothing else, so that the same
 * code runs synchronously on memory that answers at once and asynchronously on memory behind a socket.
 */
export type Walk<T> = Generator<PromiseLike<unknown>, T, unknown>;

/** The value, waited for when it is still to come. */
export function* wait<T>(value: Awaitable<T>): Walk<T> {
  return isPending(value) ? ((yield value) as T) : value;
}

/** Runs a walk to its end: synchronously as far as it yields nothing. */
export function run<T>(walk: Walk<T>): Awaitable<T> {
  const step = walk.next();
  return step.done ? step.value : runLater(walk, step.value);
}

async function runLater<T>(walk: Walk<T>, first: PromiseLike<unknown>): Promise<T> {
  let step: IteratorResult<PromiseLike<unknown>, T> = { done: false, value: first };
  while (!step.done) step = await resume(walk, step.value);
  return step.value;
}

function resume<T>(walk: Walk<T>, pending: PromiseLike<unknown>) {
  return pending.then(
    (value) => walk.next(value),
    (error) => walk.throw(error),
  );
}

/** How many walks of {@link forAll} wait for memory at a time. */
const CONCURRENCY = 32;

/**
 * A walk for each item, answered in order. Where memory answers later, several wait at a time, so that the
 * round trips of one hide behind those of the others.
 */
export function* forAll<T, R>(items: readonly T[], walkOf: (item: T, index: number) => Walk<R>): Walk<R[]> {
  const results: R[] = new Array(items.length);
  let next = 0;
  const work = (): Awaitable<undefined> => {
    while (next < items.length) {
      const index = next++;
      const result = run(walkOf(items[index]!, index));
      if (isPending(result)) {
        return result.then((value) => {
          results[index] = value;
          return work();
        });
      }
      results[index] = result;
    }
  };
  const pending: PromiseLike<undefined>[] = [];
  for (let i = 0; i < CONCURRENCY && next < items.length; i++) {
    const worker = work();
    if (isPending(worker)) pending.push(worker);
  }
  if (pending.length > 0) yield Promise.all(pending);
  return results;
}

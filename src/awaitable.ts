/**
 * A value that is there now, or later.
 *
 * Drivers that live in this process answer at once and drivers behind a socket do not; code between
 * them uses {@link then} so that the first kind pays for no promise.
 */
export type Awaitable<T> = T | PromiseLike<T>;

/** Whether `value` is still to come. */
export function isPending<T>(value: Awaitable<T>): value is PromiseLike<T> {
  return typeof value === 'object' && value !== null && typeof (value as PromiseLike<T>).then === 'function';
}

/** Applies `next` to `value`: synchronously when it is there, otherwise when it arrives. */
export function then<T, R>(value: Awaitable<T>, next: (value: T) => Awaitable<R>): Awaitable<R> {
  return isPending(value) ? value.then(next) : next(value);
}

/** Applies `step` to each item in order, waiting where it has to, until one returns false. */
export function forEachThen<T>(
  items: readonly T[],
  step: (item: T, index: number) => Awaitable<unknown>,
  from = 0,
): Awaitable<void> {
  for (let i = from; i < items.length; i++) {
    const result = step(items[i]!, i);
    if (isPending(result)) {
      return result.then((more) => (more === false ? undefined : forEachThen(items, step, i + 1)));
    }
    if (result === false) return;
  }
}

/** Runs `attempt` and hands whatever it throws, now or later, to `recover`. */
export function attempt<T>(run: () => Awaitable<T>, recover: (error: unknown) => Awaitable<T>): Awaitable<T> {
  try {
    const value = run();
    return isPending(value) ? value.then(undefined, recover) : value;
  } catch (error) {
    return recover(error);
  }
}

/** Calls `step` until it gives a value, and gives that. Synchronous as long as the steps are; flat when they are not. */
export function repeat<T>(step: () => Awaitable<T | undefined>): Awaitable<T> {
  for (;;) {
    const value = step();
    if (isPending(value)) return repeatLater(value, step);
    if (value !== undefined) return value;
  }
}

async function repeatLater<T>(
  pending: PromiseLike<T | undefined>,
  step: () => Awaitable<T | undefined>,
): Promise<T> {
  let value: T | undefined = await pending;
  while (value === undefined) {
    const next = step();
    value = isPending(next) ? await next : next;
  }
  return value;
}

/** A promise with the functions that settle it. */
export interface Deferred<T> {
  readonly promise: Promise<T>;
  resolve(value: T): void;
  reject(reason: unknown): void;
}

export function deferred<T>(): Deferred<T> {
  let resolve!: (value: T) => void;
  let reject!: (reason: unknown) => void;
  const promise = new Promise<T>((onResolve, onReject) => {
    resolve = onResolve;
    reject = onReject;
  });
  return { promise, resolve, reject };
}

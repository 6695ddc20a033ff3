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

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
  step: (item: T, index: number) => Awaitable<boolean | undefined>,
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

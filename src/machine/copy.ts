/** Up to here a loop is faster than the view that `set` needs. */
const LOOP_LIMIT = 64;

/** Copies `length` bytes of `from` at `at` to `into` at `start`. Both ranges must exist. */
export function copyBytes(
  from: Uint8Array,
  at: number,
  into: Uint8Array,
  start: number,
  length: number,
): void {
  if (length > LOOP_LIMIT) {
    into.set(from.subarray(at, at + length), start);
    return;
  }
  for (let i = 0; i < length; i++) into[start + i] = from[at + i]!;
}

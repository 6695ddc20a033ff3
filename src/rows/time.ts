const NS_PER_MS = 1_000_000n;
const DAY_MS = 86_400_000;
const MONTHS = ['Jan', 'Feb', 'Mar', 'Apr', 'May', 'Jun', 'Jul', 'Aug', 'Sep', 'Oct', 'Nov', 'Dec'];

/** The present, to the microsecond, in nanoseconds since 1970: a cell of kind `time` or `date`. */
export function now(): bigint {
  return BigInt(Math.round((performance.timeOrigin + performance.now()) * 1000)) * 1000n;
}

/** RFC 3339 in UTC with nanoseconds. */
export function formatTime(ns: bigint): string {
  return `${dateOf(ns).toISOString().slice(0, -1)}${String(ns % NS_PER_MS).padStart(6, '0')}Z`;
}

/** A time as people and {@link formatTime} write it, in nanoseconds since 1970; undefined when it is none. */
export function parseTime(text: string): bigint | undefined {
  const milliseconds = Date.parse(text);
  if (Number.isNaN(milliseconds)) return undefined;
  // Date.parse() keeps three digits of a second.
  const finer = /:\d\d\.\d{3}(\d{1,6})/.exec(text)?.[1] ?? '';
  return BigInt(milliseconds) * NS_PER_MS + BigInt(finer.padEnd(6, '0'));
}

/** The time of day, local, with microseconds. */
export function timeOfDay(ns: bigint): string {
  const date = dateOf(ns);
  const fraction = two((ns / 1000n) % 1_000_000n, 6);
  return `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}.${fraction}`;
}

/** Local, as short as ps(1) has it: `09:14` of the same day, `Nov26` of the last months, `2024-11-26` of others. */
export function shortDate(ns: bigint, present = new Date()): string {
  const date = dateOf(ns);
  const age = present.getTime() - date.getTime();
  if (date.toDateString() === present.toDateString())
    return `${two(date.getHours())}:${two(date.getMinutes())}`;
  if (age >= 0 && age < 300 * DAY_MS) return `${MONTHS[date.getMonth()]}${two(date.getDate())}`;
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
}

function dateOf(ns: bigint): Date {
  return new Date(Number(ns / NS_PER_MS));
}

function two(value: number | bigint, digits = 2): string {
  return String(value).padStart(digits, '0');
}

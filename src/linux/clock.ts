import type { Walk } from '../reading/walk.ts';
import { SYMBOL_NAMES } from './layout.ts';
import type { Session } from './session.ts';

const SECOND = 1_000_000_000n;

/** The guest's time keeping at its last tick, in nanoseconds. */
export interface Clock {
  /** Since 1970. */
  readonly realtime: bigint;
  /** Since boot, with the time that the guest was suspended. */
  readonly sinceBoot: bigint;
}

/** Reads the kernel's timekeeper; undefined when it is not to be found. */
export function* readClock(session: Session): Walk<Clock | undefined> {
  return yield* session.attempt('the clock', read(session), undefined);
}

function* read(session: Session): Walk<Clock> {
  const { symbols, layouts } = session.kernel;
  const name = SYMBOL_NAMES.timekeeper.find((candidate) => symbols.address(candidate) !== undefined);
  const address = session.symbol(name ?? 'tk_core');
  // Since 6.13 it is within a struct tk_data; before, within an anonymous one with a sequence counter in front.
  const inside = layouts.get('timekeeperCore').fields.timekeeper?.offset ?? 8;
  const offset = name === 'shadow_timekeeper' ? 0 : inside;
  const keeper = yield* session.object('timekeeper', address + BigInt(offset));
  const nanoseconds = keeper.big('nanoseconds') >> BigInt(keeper.number('shift') & 63);
  const realtime = keeper.big('seconds') * SECOND + nanoseconds;
  const monotonic = realtime + keeper.big('monotonicSeconds') * SECOND + keeper.big('monotonicNanoseconds');
  return { realtime, sinceBoot: monotonic + keeper.big('bootOffset') };
}

/** When the guest booted, in nanoseconds since 1970. */
export function bootTimeOf({ realtime, sinceBoot }: Clock): bigint {
  return realtime - sinceBoot;
}

/** The last year that RFC 3339 can write. */
const LAST_TIME = BigInt(Date.UTC(9999, 11, 31)) * 1_000_000n;

/** Nanoseconds since 1970; undefined for a time that no calendar has, as only a damaged guest tells. */
export function pointInTime(nanoseconds: bigint): bigint | undefined {
  return nanoseconds < 0n || nanoseconds > LAST_TIME ? undefined : nanoseconds;
}

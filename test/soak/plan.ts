import { HOSTS, type HostKind } from './hosts.ts';
import type { Misfortune } from './misfortunes.ts';
import { Random } from './random.ts';
import type { Need } from './subject.ts';

/** What is to happen in a round. It depends on the seed and the number of the round alone. */
export interface Plan {
  readonly host: HostKind;
  readonly misfortunes: readonly Happening[];
  /** How long the host side goes on after everything has happened. */
  readonly after: number;
}

export interface Happening {
  readonly misfortune: Misfortune;
  /** How long after the first thing was armed, in milliseconds. */
  readonly at: number;
  /** For what else is random in it. */
  readonly random: Random;
}

/** One round in three has two misfortunes. */
const SECOND = 1 / 3;
const LATEST_MS = 400;

/** `misfortunes`: some that can happen to a guest with `offers`. */
export function planOf(
  seed: number,
  round: number,
  offers: readonly Need[],
  misfortunes: readonly Misfortune[],
): Plan {
  const random = new Random(seed, round);
  const first = random.pick(misfortunes);
  const host = random.pick(
    HOSTS.filter(
      ({ needs }) =>
        (needs === undefined || offers.includes(needs)) && (first.needs !== 'tool' || needs === 'tool'),
    ),
  );
  const others = misfortunes.filter(
    (other) =>
      other !== first &&
      !(other.vm && first.vm) &&
      !spoils(first, other) &&
      (other.needs !== 'tool' || host.needs === 'tool'),
  );
  const second = random.share() < SECOND && others.length > 0 ? [random.pick(others)] : [];
  return {
    host,
    misfortunes: [first, ...second].map((misfortune, i) => ({
      misfortune,
      at: random.time(LATEST_MS),
      random: new Random(seed, round, i),
    })),
    after: random.time(LATEST_MS),
  };
}

/** Until somebody repairs it, what is migrated has in it what the killed ones left. */
function spoils(...both: readonly Misfortune[]): boolean {
  return ['both:KILL', 'vm:migrate'].every((wanted) => both.some(({ name }) => name === wanted));
}

export function describePlan({ host, misfortunes }: Plan): string {
  const what = misfortunes.map(({ misfortune, at }) => `${misfortune.name} after ${at.toFixed(0)} ms`);
  return `${host.name}: ${what.join(', ')}`;
}

import type { Measurement, SuiteResult } from './measurement.ts';

/** How often both revisions are measured: at least, and at most while one is slower. */
const ROUNDS = { least: 3, most: 5 } as const;

/** The least speed, of that of the other revision, that passes. */
export const TOLERANCE = 0.8;

/** One value of two revisions: the best of each, as other work on the machine only ever makes it worse. */
export interface Compared {
  readonly name: string;
  readonly unit: string;
  /** Of the working tree. */
  readonly here: number;
  /** Of the other revision. */
  readonly there: number;
  /** How much better the working tree is: 2 is twice the speed, half the time or half the memory. */
  readonly ratio: number;
  readonly slower: boolean;
}

export interface Comparison {
  readonly rounds: number;
  readonly measurements: readonly Compared[];
  /** Names that only one of the two measures. */
  readonly unmatched: readonly string[];
}

type Run = () => Promise<SuiteResult>;

/** Measures a suite of two revisions in turns. */
export async function compared(here: Run, there: Run): Promise<{ skipped: string } | Comparison> {
  const [ours, theirs] = [new Best(), new Best()];
  for (let round = 1; ; round++) {
    // Neither is always the first one: a processor gets warm.
    const turns = [
      { run: there, best: theirs, where: 'there' },
      { run: here, best: ours, where: 'here' },
    ];
    for (const { run, best, where } of round % 2 === 0 ? turns.reverse() : turns) {
      const result = await run();
      if ('skipped' in result) return { skipped: `${where}: ${result.skipped}` };
      for (const measurement of result.measurements) best.add(measurement);
    }
    const measurements = matches(ours, theirs);
    const slower = measurements.some((each) => each.slower);
    if (round < ROUNDS.least || (slower && round < ROUNDS.most)) continue;
    const unmatched = [...ours.names, ...theirs.names].filter(
      (name) => !(ours.get(name) && theirs.get(name)),
    );
    return { rounds: round, measurements, unmatched };
  }
}

/** The best value of each measurement. */
class Best {
  readonly #values = new Map<string, Measurement>();

  get names(): Iterable<string> {
    return this.#values.keys();
  }

  get(name: string): Measurement | undefined {
    return this.#values.get(name);
  }

  add(measurement: Measurement): void {
    const known = this.#values.get(measurement.name);
    if (!known || better(measurement, known) > 1) this.#values.set(measurement.name, measurement);
  }
}

/** Of rates more is better, of everything else less. */
function better(a: Measurement, b: Measurement): number {
  return a.unit.endsWith('/s') ? a.value / b.value : b.value / a.value;
}

function matches(ours: Best, theirs: Best): Compared[] {
  return [...ours.names].flatMap((name) => {
    const [here, there] = [ours.get(name)!, theirs.get(name)];
    if (here.unit !== there?.unit) return [];
    const ratio = better(here, there);
    return [
      { name, unit: here.unit, here: here.value, there: there.value, ratio, slower: ratio < TOLERANCE },
    ];
  });
}

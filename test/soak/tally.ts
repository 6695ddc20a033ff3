import { FAULTS, type Fault, type FaultKind } from './faults.ts';

type Counts = { rounds: number } & Record<FaultKind, number>;

/** What was wrong after which kinds of misfortune. */
export class Tally {
  readonly #kinds = new Map<string, Counts>();
  readonly #all = noCounts();

  /** One round, in which all `kinds` happened. */
  add(kinds: readonly string[], faults: readonly Fault[]): void {
    for (const kind of kinds) {
      const counts = this.#kinds.get(kind) ?? noCounts();
      this.#kinds.set(kind, counts);
      count(counts, faults);
    }
    count(this.#all, faults);
  }

  get rounds(): number {
    return this.#all.rounds;
  }

  /** Whether nothing was wrong. */
  get clean(): boolean {
    return FAULTS.every((kind) => this.#all[kind] === 0);
  }

  /** The closing table. A round with two misfortunes counts in both rows. */
  lines(): string[] {
    const columns = ['rounds', ...FAULTS] as const;
    const rows = [...[...this.#kinds].sort(([a], [b]) => a.localeCompare(b)), ['all', this.#all] as const];
    const width = Math.max(...rows.map(([name]) => name.length));
    const line = (name: string, cells: readonly string[]) =>
      [name.padEnd(width), ...cells.map((cell, i) => cell.padStart(columns[i]!.length))].join('  ');
    return [
      line('', columns),
      ...rows.map(([name, counts]) =>
        line(
          name,
          columns.map((column) => String(counts[column])),
        ),
      ),
    ];
  }
}

function noCounts(): Counts {
  return { rounds: 0, ...(Object.fromEntries(FAULTS.map((kind) => [kind, 0])) as Record<FaultKind, number>) };
}

function count(counts: Counts, faults: readonly Fault[]): void {
  counts.rounds++;
  for (const { kind, count: more } of faults) counts[kind] += more;
}

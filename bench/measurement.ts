/** What one benchmark found. */
export interface Measurement {
  readonly name: string;
  readonly value: number;
  readonly unit: string;
  /** Against a peer or a physical limit in the same run, with the budget that the specification names. */
  readonly against?: {
    readonly what: string;
    readonly ratio: number;
    /** `>= 0.6`: at least; `<= 1.5`: at most. */
    readonly budget?: `${'>=' | '<='} ${number}`;
  };
}

/** A group of benchmarks; why it cannot run here, or its measurements. */
export interface Suite {
  readonly name: string;
  unavailable?(): string | undefined;
  run(): Promise<Measurement[]>;
}

/** What a suite answers: the reason why it cannot run here, or what it measured. */
export type SuiteResult = { readonly skipped: string } | { readonly measurements: readonly Measurement[] };

/** Operations per second of a synchronous function, after a warm-up, over about `milliseconds`. */
export function ratePerSecond(run: (count: number) => void, milliseconds = 400): number {
  let count = 1;
  for (;;) {
    const start = performance.now();
    run(count);
    const elapsed = performance.now() - start;
    if (elapsed >= milliseconds) return (count / elapsed) * 1000;
    count = Math.ceil(count * (elapsed < 1 ? 16 : Math.min(16, (milliseconds * 1.2) / elapsed)));
  }
}

/** The same for work that takes promises. */
export async function ratePerSecondAsync(
  run: (count: number) => Promise<void>,
  milliseconds = 600,
): Promise<number> {
  let count = 1;
  for (;;) {
    const start = performance.now();
    await run(count);
    const elapsed = performance.now() - start;
    if (elapsed >= milliseconds) return (count / elapsed) * 1000;
    count = Math.ceil(count * (elapsed < 1 ? 16 : Math.min(16, (milliseconds * 1.2) / elapsed)));
  }
}

/** The middle one of some values. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? Number.NaN;
}

/** Whether a measurement keeps its budget; undefined: it has none. */
export function keepsBudget({ against }: Measurement): boolean | undefined {
  if (against?.budget === undefined) return undefined;
  const [relation, limit] = against.budget.split(' ');
  return relation === '>=' ? against.ratio >= Number(limit) : against.ratio <= Number(limit);
}

import type { SuiteResult } from './measurement.ts';
import { SUITES } from './suites.ts';

/*
 * Runs the suite that argv[2] names once, and prints a SuiteResult as JSON: the interface that the benchmarks of
 * two revisions share. What one suite leaves behind is not in the way of the next.
 */
async function result(name: string | undefined): Promise<SuiteResult> {
  const suite = SUITES.find((each) => each.name === name);
  if (!suite) return { skipped: `there is no suite "${name}"` };
  const skipped = suite.unavailable?.();
  return skipped === undefined ? { measurements: await suite.run() } : { skipped };
}

// What suites start ends with this process.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => process.exit(1));

console.log(JSON.stringify(await result(process.argv[2])));

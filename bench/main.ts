import { openSync, writeFileSync } from 'node:fs';
import { constants } from 'node:os';
import { join } from 'node:path';
import { BenchError } from './bench-error.ts';
import { judged } from './budgets.ts';
import { parseCommandLine } from './command-line.ts';
import { compared, TOLERANCE } from './comparison.ts';
import { isBad, type Report, type SuiteReport, suiteLines } from './report.ts';
import { buildRevision, commitOf, type Revision } from './revision.ts';
import { runSuite } from './run-suite.ts';
import { SUITES } from './suites.ts';

/* Exit codes: 0; 1: a budget is missed, something is slower, a suite failed; 2: it cannot be run as asked for. */

const root = join(import.meta.dirname, '..', '..');
const HERE = join(root, 'dist');

const stopping = new AbortController();
let stoppedBy: 'SIGINT' | 'SIGTERM' | 'SIGHUP' | undefined;
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  process.on(signal, () => {
    stoppedBy = signal;
    stopping.abort();
  });
}

async function reported(suite: string, revision: Revision | undefined): Promise<SuiteReport> {
  const here = () => runSuite(HERE, suite, stopping.signal);
  try {
    if (!revision) return { suite, ...(await judged(here)) };
    const there = () => runSuite(revision.dist, suite, stopping.signal);
    return { suite, ...(await compared(here, there)) };
  } catch (error) {
    if (!(error instanceof BenchError)) throw error;
    return { suite, failed: error.message };
  }
}

/** Opened before anything is measured: a path that cannot be written to costs nobody an hour. */
function descriptor(json: string | undefined): number | undefined {
  if (json === undefined || json === '-') return json === undefined ? undefined : process.stdout.fd;
  try {
    return openSync(json, 'w');
  } catch (error) {
    throw new BenchError(`--json: ${error instanceof Error ? error.message : error}`);
  }
}

async function run(): Promise<boolean> {
  const options = parseCommandLine(
    process.argv.slice(2),
    SUITES.map(({ name }) => name),
  );
  const json = descriptor(options.json);
  const say = options.json === '-' ? console.error : console.log;
  const commit = options.against === undefined ? undefined : commitOf(root, options.against);
  if (commit) say(`compiling ${options.against} (${commit.slice(0, 12)})`);
  const revision = commit === undefined ? undefined : buildRevision(root, commit);
  const suites: SuiteReport[] = [];
  try {
    if (revision) say('values: there -> here; ratio: how much better here is, 1 is alike');
    for (const suite of options.suites) {
      say(suite);
      const report = await reported(suite, revision);
      if (stoppedBy) break;
      suites.push(report);
      for (const line of suiteLines(report)) say(line);
    }
  } finally {
    revision?.remove();
  }
  const ok = !suites.some(isBad);
  const report: Report = {
    format: 'kvmi-bench',
    version: 1,
    ...(commit !== undefined && { against: { commit, tolerance: TOLERANCE } }),
    ok,
    suites,
  };
  if (json !== undefined && !stoppedBy) writeFileSync(json, `${JSON.stringify(report, undefined, 2)}\n`);
  return ok;
}

try {
  process.exitCode = (await run()) ? 0 : 1;
} catch (error) {
  if (!(error instanceof BenchError)) throw error;
  console.error(`bench: ${error.message}`);
  process.exitCode = 2;
}
if (stoppedBy) process.exitCode = 128 + constants.signals[stoppedBy];

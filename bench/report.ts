import { type Judged, TRIES } from './budgets.ts';
import { type Compared, type Comparison, TOLERANCE } from './comparison.ts';

/** What became of a suite: why it did not run, how it failed, or what it measured. */
export type SuiteReport = { readonly suite: string } & (
  | { readonly skipped: string }
  | { readonly failed: string }
  | { readonly measurements: readonly Judged[] }
  | Comparison
);

/** The form of the results as JSON. Fields may be added; a change of one that is there changes `version`. */
export interface Report {
  readonly format: 'kvmi-bench';
  readonly version: 1;
  /** The commit that was compared with, and the least ratio that passes. */
  readonly against?: { readonly commit: string; readonly tolerance: number };
  /** Every budget is kept, nothing is slower than `against`, no suite failed. */
  readonly ok: boolean;
  readonly suites: readonly SuiteReport[];
}

/** What a person reads about a suite. */
export function suiteLines(report: SuiteReport): string[] {
  if ('skipped' in report) return [`  skipped: ${report.skipped}`];
  if ('failed' in report) return [`  FAILED: ${report.failed}`];
  if (!('rounds' in report)) return report.measurements.map(judgedLine);
  return [
    ...report.measurements.map(comparedLine),
    ...report.unmatched.map((name) => `  ${name.padEnd(52)} only one of the two measures this`),
    `  (the best of ${report.rounds} rounds)`,
  ];
}

/** Whether a suite is a reason to fail. */
export function isBad(report: SuiteReport): boolean {
  if ('skipped' in report) return false;
  if ('failed' in report) return true;
  return 'rounds' in report
    ? report.measurements.some(({ slower }) => slower)
    : report.measurements.some(({ kept }) => kept === false);
}

function judgedLine({ name, value, unit, against, tries, kept }: Judged): string {
  const start = `  ${name.padEnd(52)} ${number(value).padStart(14)} ${unit.padEnd(8)}`;
  if (!against) return start;
  const { what, ratio, budget } = against;
  const which = kept ? (tries > 1 ? `, kept in try ${tries} of ${TRIES}` : '') : `, MISSED in ${tries} tries`;
  return `${start} ${ratio.toFixed(2)} × ${what}${budget ? ` (budget ${budget}${which})` : ''}`;
}

function comparedLine({ name, unit, here, there, ratio, slower }: Compared): string {
  const values = `${number(there).padStart(14)} -> ${number(here).padStart(10)} ${unit.padEnd(8)}`;
  return `  ${name.padEnd(52)} ${values} ${ratio.toFixed(2)} ×${slower ? ` SLOWER (tolerance ${TOLERANCE})` : ''}`;
}

function number(value: number): string {
  const digits = value >= 100 ? 0 : value >= 1 ? 1 : 3;
  return value.toLocaleString('en', { maximumFractionDigits: digits, minimumFractionDigits: digits });
}

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { test } from 'node:test';
import { judged } from '../../bench/budgets.ts';
import { compared } from '../../bench/comparison.ts';
import type { Measurement, SuiteResult } from '../../bench/measurement.ts';
import { isBad, suiteLines } from '../../bench/report.ts';

/* A missed budget and a slow-down are told, and the ends of `npm run bench` say so. */

const MAIN = join(import.meta.dirname, '..', '..', 'bench', 'main.js');

/** A suite that measures one value after the other; the last one from then on. */
function suite(values: readonly number[], measure: (value: number) => Measurement) {
  let runs = 0;
  const run = async (): Promise<SuiteResult> => ({
    measurements: [measure(values[Math.min(runs++, values.length - 1)]!)],
  });
  return { run, runs: () => runs };
}

const budgeted = (ratio: number): Measurement => ({
  name: 'work',
  value: 1,
  unit: 'ms',
  against: { what: 'a peer', ratio, budget: '<= 1' },
});
const timed = (value: number): Measurement => ({ name: 'work', value, unit: 'ms' });
const rated = (value: number): Measurement => ({ name: 'work', value, unit: 'M/s' });

test('a budget that is missed three times is missed, and fails the suite', async () => {
  const { run, runs } = suite([2], budgeted);
  const report = { suite: 'x', ...(await judged(run)) };
  assert.equal(runs(), 3);
  assert.match(suiteLines(report).join(), /MISSED in 3 tries/);
  assert.equal(isBad(report), true);
});

test('a budget that is kept in a later try is kept, and the line says in which', async () => {
  const { run, runs } = suite([2, 0.9, 2], budgeted);
  const report = { suite: 'x', ...(await judged(run)) };
  assert.equal(runs(), 2);
  assert.match(suiteLines(report).join(), /0\.90 × a peer \(budget <= 1, kept in try 2 of 3\)/);
  assert.equal(isBad(report), false);
});

test('what kept its budget is not measured into a miss by a later try', async () => {
  let tries = 0;
  const report = await judged(async () => {
    tries++;
    return { measurements: [budgeted(tries), { ...budgeted(tries === 1 ? 2 : 0.5), name: 'other' }] };
  });
  assert.equal(isBad({ suite: 'x', ...report }), false);
});

for (const [what, measure, here, there] of [
  ['a time that grows', timed, 13, 10],
  ['a rate that falls', rated, 7, 10],
] as const) {
  test(`${what} by more than the tolerance fails the comparison`, async () => {
    const ours = suite([here], measure);
    const report = { suite: 'x', ...(await compared(ours.run, suite([there], measure).run)) };
    assert.equal(ours.runs(), 5, 'measured again before it is believed');
    assert.match(suiteLines(report).join(), /0\.7\d × SLOWER \(tolerance 0\.8\)/);
    assert.equal(isBad(report), true);
    const other = {
      suite: 'x',
      ...(await compared(suite([there], measure).run, suite([here], measure).run)),
    };
    assert.equal(isBad(other), false, 'the other way round it is an improvement');
  });
}

test('one disturbed round does not fail the comparison', async () => {
  const report = await compared(suite([30, 10], timed).run, suite([10], timed).run);
  assert.equal(isBad({ suite: 'x', ...report }), false);
});

test('revisions are measured in turns', async () => {
  const order: string[] = [];
  const run = (name: string) => async (): Promise<SuiteResult> => {
    order.push(name);
    return { measurements: [timed(1)] };
  };
  await compared(run('here'), run('there'));
  assert.deepEqual(order, ['there', 'here', 'here', 'there', 'there', 'here']);
});

test('what only one revision measures is named and compared with nothing', async () => {
  const there = async (): Promise<SuiteResult> => ({ measurements: [{ ...timed(1), name: 'gone' }] });
  const report = { suite: 'x', ...(await compared(suite([1], timed).run, there)) };
  assert.match(suiteLines(report).join('\n'), /work .*only one.*gone .*only one/s);
  assert.equal(isBad(report), false);
});

for (const [what, args, message] of [
  ['an unknown suite', ['memroy'], /no suite "memroy"\. Suites: memory, embedded, qemu/],
  ['an unknown option', ['--jsn', 'x'], /--jsn.*Usage: npm run bench/s],
  ['a file that cannot be written', ['--json', '/nowhere/x.json'], /--json: .*ENOENT/],
  ['an unknown revision', ['--against', 'no-such-revision', 'memory'], /git knows no commit "no-such-rev/],
] as const) {
  test(`${what} is an error before anything is measured`, () => {
    const { status, stdout, stderr } = spawnSync(process.execPath, [MAIN, ...args], { encoding: 'utf8' });
    assert.equal(status, 2, stderr);
    assert.match(stderr, message);
    assert.doesNotMatch(stderr, /\n\s+at /, 'no stack trace');
    assert.equal(stdout, '');
  });
}

test('-o json: standard output is one document, people read standard error', () => {
  const { status, stdout, stderr } = spawnSync(process.execPath, [MAIN, '-o', 'json', 'memory'], {
    encoding: 'utf8',
  });
  const { format, version, ok, suites } = JSON.parse(stdout);
  assert.deepEqual([status, format, version, ok, suites.length], [0, 'kvmi-bench', 1, true, 1]);
  assert.ok(suites[0].measurements.every(({ value }: Measurement) => value > 0));
  assert.match(stderr, /^memory\n {2}RegionMemory\.read, 8 bytes/);
});

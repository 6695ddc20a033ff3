import { whyNoLinuxGuest } from '../kit/linux-guest.ts';
import { parseCommandLine, SoakError, type SoakOptions } from './command-line.ts';
import type { Fault } from './faults.ts';
import { groundsFor } from './grounds.ts';
import { describePlan, planOf } from './plan.ts';
import { Progress } from './progress.ts';
import { type Outcome, play } from './round.ts';
import type { Subject } from './subject.ts';
import { Tally } from './tally.ts';

/* Exit codes: 0; 1: something was wrong; 2: it cannot be run. */

/** So many rounds in a row have the same kind of guest. */
const BLOCK = 25;
const SHOWN_LINES = 30;

const ended = new AbortController();
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.once(signal, () => ended.abort());

async function soak({ rounds, seed, misfortunes }: SoakOptions): Promise<Tally> {
  const grounds = groundsFor(misfortunes, (reason) => console.error(`left out: ${reason}`));
  if (grounds.length === 0) throw new SoakError('there is no guest here to which any of that can happen');
  const tally = new Tally();
  const progress = new Progress(rounds);
  let subject: Subject | undefined;
  let failed = 0;
  for (let round = 0; round < rounds && !ended.signal.aborted; round++) {
    if (round % BLOCK === 0) {
      await subject?.kill();
      subject = undefined;
    }
    const ground = grounds[Math.floor(round / BLOCK) % grounds.length]!;
    subject ??= await ground.boot();
    const plan = planOf(seed, round, subject.offers, ground.misfortunes);
    const outcome = await play(subject, plan, round);
    tally.add(
      plan.misfortunes.map(({ misfortune }) => misfortune.name),
      outcome.faults,
    );
    if (outcome.faults.length > 0) {
      failed++;
      progress.clear();
      console.error(await failure(outcome, `seed ${seed}, round ${round}, ${describePlan(plan)}`));
    }
    subject = outcome.subject;
    if (!outcome.fit) {
      await subject.kill();
      subject = undefined;
    }
    progress.show(round + 1, failed, describePlan(plan));
  }
  progress.clear();
  await subject?.kill();
  return tally;
}

/** What is known of a round after which something was wrong. */
async function failure({ subject, faults, stderr }: Outcome, when: string): Promise<string> {
  const status = await subject.monitor.execute('query-status').catch(String);
  const section = (name: string, lines: readonly string[]) => [
    `  ${name}:`,
    ...lines.map((line) => `    ${line}`),
  ];
  return [
    when,
    ...faults.map(({ kind, what }: Fault) => `  ${kind}: ${what}`),
    `  QEMU: ${JSON.stringify(status)}`,
    ...section('the guest said', subject.log.slice(-SHOWN_LINES)),
    ...section('the host side said', stderr.trimEnd().split('\n').slice(-SHOWN_LINES)),
  ].join('\n');
}

try {
  const reason = whyNoLinuxGuest();
  if (reason !== undefined) throw new SoakError(reason);
  const options = parseCommandLine(process.argv.slice(2));
  console.error(`seed ${options.seed}, ${options.rounds} rounds`);
  const tally = await soak(options);
  for (const line of tally.lines()) console.log(line);
  process.exitCode = tally.clean && tally.rounds === options.rounds ? 0 : 1;
} catch (error) {
  if (!(error instanceof SoakError)) throw error;
  console.error(`soak: ${error.message}`);
  process.exitCode = 2;
}

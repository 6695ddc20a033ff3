import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { faultsOf, needsRepair } from './checks.ts';
import { Child, MARK } from './child.ts';
import { type Fault, fault } from './faults.ts';
import { workspacesOf } from './left-over.ts';
import type { Plan } from './plan.ts';
import { Scene } from './scene.ts';
import type { Subject } from './subject.ts';

const KVMI = join(import.meta.dirname, '..', '..', '..', 'bin', 'kvmi');

export interface Outcome {
  readonly faults: readonly Fault[];
  /** The guest that is there now, and whether it is fit for another round. */
  readonly subject: Subject;
  readonly fit: boolean;
  readonly stderr: string;
}

/** Hooks the guest, lets happen what is planned, and looks at the guest. */
export async function play(subject: Subject, plan: Plan, round: number): Promise<Outcome> {
  const mark = `${process.pid}.${round}`;
  const environment = { ...subject.environment, [MARK]: mark };
  const logged = subject.log.length;
  const faults: Fault[] = [];
  let scene: Scene | undefined;
  try {
    scene = new Scene(subject, await plan.host.start(subject, environment));
    const { host } = scene;
    const used = workspacesOf(mark);
    for (const problem of await happen(scene, plan)) faults.push(fault('other', problem));
    if (!(await host.end())) faults.push(fault('processes', 'the host side does not end'));
    if (needsRepair(subject)) faults.push(...(await repair(subject, plan, environment)));
    faults.push(...(await faultsOf(scene, mark, used, logged)));
    for (const act of scene.afterwards()) {
      await act();
      faults.push(...(await faultsOf(scene, mark, used, 0)));
    }
  } catch (error) {
    faults.push(fault('other', error instanceof Error ? error.message : String(error)));
  }
  return {
    faults,
    subject: scene?.subject ?? subject,
    fit: faults.length === 0 && !scene?.retired,
    stderr: scene?.host.stderr ?? '',
  };
}

/** What could not be done of it. */
async function happen(scene: Scene, plan: Plan): Promise<string[]> {
  const ends = await Promise.allSettled(
    plan.misfortunes.map(async ({ misfortune, at, random }) => {
      await sleep(at);
      await misfortune.happen(scene, random);
    }),
  );
  await sleep(plan.after);
  return ends.flatMap((end) => (end.status === 'rejected' ? [String(end.reason)] : []));
}

/** Only where guard and host side were killed: otherwise somebody should have done it. */
async function repair(
  { target }: Subject,
  { misfortunes }: Plan,
  environment: Readonly<Record<string, string>>,
): Promise<Fault[]> {
  if (!misfortunes.some(({ misfortune: { name } }) => name === 'both:KILL' || name === 'guard:KILL'))
    return [fault('files', 'a journal is left, and nobody who would act on it')];
  const child = new Child([KVMI, 'repair', target, '-o', 'json'], environment);
  await child.said(/"outcome": *"(repaired|nothing)"/);
  return (await child.end('SIGCONT')) ? [] : [fault('processes', 'kvmi repair does not end')];
}

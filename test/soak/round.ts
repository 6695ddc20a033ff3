import { setTimeout as sleep } from 'node:timers/promises';
import { kvmi } from '../kit/kvmi-process.ts';
import { faultsOf, needsRepair } from './checks.ts';
import { MARK, PATIENCE_MS } from './child.ts';
import { type Fault, fault } from './faults.ts';
import { workspacesOf } from './left-over.ts';
import type { Plan } from './plan.ts';
import { Scene } from './scene.ts';
import type { Subject } from './subject.ts';

const PAUSE_MS = 200;

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
    if (withoutGuard(plan)) faults.push(...(await repair(subject, environment)));
    else if (needsRepair(subject)) faults.push(fault('files', 'a journal that nobody would act on'));
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

/** Whether nobody may have been there who undoes what is left: then the next kvmi does. */
function withoutGuard({ misfortunes }: Plan): boolean {
  return misfortunes.some(({ misfortune: { name } }) => name === 'both:KILL' || name === 'guard:KILL');
}

/** The guard, where there is one all the same, may be about to do it: then it is asked again. */
async function repair({ target }: Subject, environment: Readonly<Record<string, string>>): Promise<Fault[]> {
  for (const deadline = Date.now() + PATIENCE_MS; ; await sleep(PAUSE_MS)) {
    const { code, stderr } = await kvmi(['repair', target], environment);
    if (code === 0) return [];
    if (Date.now() > deadline) return [fault('other', `kvmi repair: ${stderr}`)];
  }
}

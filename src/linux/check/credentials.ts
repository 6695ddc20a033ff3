import type { Gva } from '../../machine/index.ts';
import type { Session } from '../session.ts';
import { taskList } from '../tasks.ts';
import { hex } from '../text.ts';
import type { Walk } from '../walk.ts';
import type { Finding } from './finding.ts';

/** Whose rights a process had, and where that was written. */
export interface Rights {
  readonly pid: number;
  readonly comm: string;
  readonly startNs: bigint;
  readonly cred: Gva;
  readonly uids: readonly number[];
  readonly capabilities: bigint;
}

const PF_KTHREAD = 0x00200000;

export function* readRights(session: Session): Walk<Map<Gva, Rights>> {
  const rights = new Map<Gva, Rights>();
  for (const task of yield* taskList(session)) {
    if ((task.number('flags') & PF_KTHREAD) !== 0 || task.pointer('mm') === 0n) continue;
    const cred = yield* session.attempt(
      'credentials',
      session.object('cred', task.pointer('cred')),
      undefined,
    );
    if (cred === undefined) continue;
    rights.set(task.gva, {
      pid: task.number('tgid'),
      comm: task.text('comm'),
      startNs: task.big('startTime'),
      cred: cred.gva,
      uids: [cred.number('uid'), cred.number('euid'), cred.number('suid'), cred.number('fsuid')],
      capabilities: cred.big('capEffective'),
    });
  }
  return rights;
}

/**
 * The kernel never changes credentials that are in use: it makes new ones. Processes whose rights grew where they are,
 * and processes that share the credentials of the kernel's own threads.
 */
export function* checkCredentials(
  session: Session,
  baseline: ReadonlyMap<Gva, Rights> | undefined,
): Walk<Finding[]> {
  const shared = session.kernel.symbols.address('init_cred');
  const findings: Finding[] = [];
  for (const [task, now] of yield* readRights(session)) {
    const common = {
      check: 'credentials',
      subject: `${now.pid} ${now.comm}`,
      address: hex(now.cred),
    } as const;
    if (now.cred === shared)
      findings.push({
        ...common,
        expected: 'credentials of its own',
        found: 'those of the kernel (init_cred)',
      });
    const before = baseline?.get(task);
    const isSame = before?.cred === now.cred && before.startNs === now.startNs && before.pid === now.pid;
    if (!isSame || !grew(before, now)) continue;
    findings.push({ ...common, expected: describe(before), found: `${describe(now)} at the same address` });
  }
  return findings;
}

function grew(before: Rights, now: Rights): boolean {
  const becameRoot = now.uids.some((uid, i) => uid === 0 && before.uids[i] !== 0);
  return becameRoot || (now.capabilities & ~before.capabilities) !== 0n;
}

function describe({ uids, capabilities }: Rights): string {
  return `uids ${uids.join(',')} capabilities 0x${capabilities.toString(16)}`;
}

import type { Gva } from '../../machine/index.ts';
import type { Walk } from '../../reading/walk.ts';
import type { Obj, Session } from '../session.ts';
import { taskList } from '../tasks.ts';
import type { Finding } from './finding.ts';

/** Whose rights a process has, and where that is written. */
export interface Rights {
  readonly pid: number;
  readonly comm: string;
  readonly startNs: bigint;
  readonly cred: Gva;
  readonly uids: readonly number[];
  readonly capabilities: bigint;
  /** Of the user that the kernel accounts the process to: that of its real user id. */
  readonly user: number | undefined;
}

const PF_KTHREAD = 0x00200000;

export function* readRights(session: Session): Walk<Map<Gva, Rights>> {
  const rights = new Map<Gva, Rights>();
  for (const task of session.timely(yield* taskList(session))) {
    if ((task.number('flags') & PF_KTHREAD) !== 0 || task.pointer('mm') === 0n) continue;
    const walk = session.object('cred', task.pointer('realCred'));
    const cred = yield* session.attempt('credentials', walk, undefined);
    if (cred === undefined) continue;
    rights.set(task.gva, {
      pid: task.number('tgid'),
      comm: task.text('comm'),
      startNs: task.big('startTime'),
      cred: cred.gva,
      uids: [cred.number('uid'), cred.number('euid'), cred.number('suid'), cred.number('fsuid')],
      capabilities: cred.big('capEffective'),
      user: yield* session.attempt('credentials', userOf(session, cred), undefined),
    });
  }
  return rights;
}

function* userOf(session: Session, cred: Obj<'cred'>): Walk<number | undefined> {
  if (!cred.has('user') || session.kernel.layouts.get('user').size === 0) return undefined;
  return (yield* session.object('user', cred.pointer('user'))).number('uid');
}

/**
 * The kernel never changes credentials that are in use: it makes new ones, for one process each. So these are signs
 * of a change by somebody else: rights that grew where they are, a user id that is not the one of the user whom the
 * process is accounted to, and credentials that two processes share, or a process shares with the kernel.
 */
export function* checkCredentials(
  session: Session,
  baseline: ReadonlyMap<Gva, Rights> | undefined,
): Walk<Finding[]> {
  const kernelCred = session.kernel.symbols.address('init_cred');
  const findings: Finding[] = [];
  const owners = new Map<Gva, Rights>();
  for (const [task, now] of yield* readRights(session)) {
    const report = (expected: string, found: string) =>
      findings.push({
        check: 'credentials',
        subject: `${now.pid} ${now.comm}`,
        address: now.cred,
        expected,
        found,
      });
    const owner = owners.get(now.cred) ?? now;
    owners.set(now.cred, owner);
    if (now.cred === kernelCred) report(OWN, 'those of the kernel (init_cred)');
    else if (owner.pid !== now.pid) report(OWN, `those of process ${owner.pid} ${owner.comm}`);
    if (now.user !== undefined && now.user !== now.uids[0])
      report(`user id ${now.user}, of the user that the process belongs to`, `user id ${now.uids[0]}`);
    const before = baseline?.get(task);
    const isSame = before?.cred === now.cred && before.startNs === now.startNs && before.pid === now.pid;
    if (isSame && grew(before, now)) report(describe(before), `${describe(now)} at the same address`);
  }
  return findings;
}

const OWN = 'credentials of its own';

function grew(before: Rights, now: Rights): boolean {
  const becameRoot = now.uids.some((uid, i) => uid === 0 && before.uids[i] !== 0);
  return becameRoot || (now.capabilities & ~before.capabilities) !== 0n;
}

function describe({ uids, capabilities }: Rights): string {
  return `uids ${uids.join(',')} capabilities 0x${capabilities.toString(16)}`;
}

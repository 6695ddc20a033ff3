import type { Gva } from '../../machine/index.ts';
import { Session } from '../session.ts';
import type { Walk } from '../walk.ts';
import { checkCredentials, type Rights, readRights } from './credentials.ts';
import { checkEntries, checkInterrupts, checkSyscalls } from './dispatch.ts';
import type { Finding } from './finding.ts';
import { checkImage } from './image.ts';
import { hiddenModules } from './modules.ts';
import { hiddenProcesses } from './processes.ts';
import { checkText, readText, type TextImage } from './text.ts';

export type { Finding } from './finding.ts';
export { type Hook, hooks } from './hooks.ts';

/** A guest at a time when it was thought to be well, to compare it with later. */
export interface Baseline {
  readonly text: TextImage;
  readonly rights: ReadonlyMap<Gva, Rights>;
}

export interface CheckOptions {
  readonly baseline?: Baseline;
  /** The 536-byte states of vCPUs, to check LSTAR and the interrupt table. */
  readonly states?: readonly Uint8Array[];
  /** The uncompressed vmlinux file of the kernel, to compare its code with. */
  readonly vmlinux?: Uint8Array;
}

export function* takeBaseline(session: Session): Walk<Baseline> {
  return { text: yield* readText(session), rights: yield* readRights(session) };
}

export function* check(session: Session, { baseline, states = [], vmlinux }: CheckOptions): Walk<Finding[]> {
  const again = () => new Session(session.kernel);
  const walks: readonly (readonly [string, Walk<Finding[]>])[] = [
    ['text', checkText(session, baseline?.text)],
    ...(vmlinux === undefined ? [] : [['vmlinux', checkImage(session, vmlinux)] as const]),
    ['system calls', checkSyscalls(session)],
    ['interrupts', checkInterrupts(session)],
    ['entries', checkEntries(session, states)],
    ['hidden modules', hiddenModules(session)],
    ['hidden processes', hiddenProcesses(session, again)],
    ['credentials', checkCredentials(session, baseline?.rights)],
  ];
  const findings: Finding[] = [];
  for (const [what, walk] of walks) findings.push(...(yield* session.attempt(what, walk, [])));
  return findings;
}

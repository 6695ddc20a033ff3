import type { Walk } from '../../reading/walk.ts';
import type { Session } from '../session.ts';
import type { Baseline } from './baseline.ts';
import { checkCredentials } from './credentials.ts';
import { checkEntries, checkInterrupts, checkSyscalls, checkTables } from './dispatch.ts';
import { confirmed, type Finding } from './finding.ts';
import { checkImage } from './image.ts';
import { hiddenModules } from './modules.ts';
import { hiddenProcesses } from './processes.ts';
import { checkText } from './text.ts';

export { type Baseline, baselineFromBytes, baselineToBytes, takeBaseline } from './baseline.ts';
export type { Finding } from './finding.ts';
export { type Hook, hooks } from './hooks.ts';

export interface CheckOptions {
  readonly baseline?: Baseline;
  /** The 536-byte states of vCPUs, to check the MSRs with the kernel's entries and the interrupt table. */
  readonly states?: readonly Uint8Array[];
  /** The vmlinux of the kernel, as `readKernelFile` gives it, to compare its code with. */
  readonly vmlinux?: Uint8Array;
}

type Look = (session: Session) => Walk<Finding[]>;

export function* check(session: Session, { baseline, states = [], vmlinux }: CheckOptions): Walk<Finding[]> {
  const known = comparable(session, baseline);
  const looks: readonly (readonly [string, Look])[] = [
    ['text', (look) => checkText(look, known)],
    ...(vmlinux === undefined ? [] : [['vmlinux', (look: Session) => checkImage(look, vmlinux)] as const]),
    ['system calls', checkSyscalls],
    ['interrupts', checkInterrupts],
    ['tables', (look) => checkTables(look, known?.tables ?? [])],
    ['entries', (look) => checkEntries(look, states)],
    ['hidden modules', hiddenModules],
    ['credentials', (look) => checkCredentials(look, known?.rights)],
  ];
  const findings = new Map<string, Finding>();
  const add = (found: readonly Finding[]) => {
    for (const finding of found) {
      // Two checks may see the same; what the first one says is the more specific.
      const place = `${finding.check} ${finding.address} ${finding.subject}`;
      if (!findings.has(place)) findings.set(place, finding);
    }
  };
  for (const [what, look] of looks) add(yield* session.attempt(what, confirmed(session, look), []));
  add(yield* session.attempt('hidden processes', hiddenProcesses(session), []));
  return [...findings.values()];
}

/** The baseline, when it is of this boot. */
function comparable(session: Session, baseline: Baseline | undefined): Baseline | undefined {
  if (baseline === undefined) return undefined;
  const { kernel } = session;
  if (baseline.banner === kernel.banner && baseline.text.start === session.symbol('_stext')) return baseline;
  session.note('the baseline is of another boot or of another kernel, and is not used');
  return undefined;
}

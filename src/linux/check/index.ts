import { KvmiError } from '../../error.ts';
import type { Walk } from '../../reading/walk.ts';
import type { Session } from '../session.ts';
import type { Baseline } from './baseline.ts';
import { checkCredentials } from './credentials.ts';
import { checkEntries, checkInterrupts, checkSyscalls, checkTables } from './dispatch.ts';
import { confirmed, type Finding } from './finding.ts';
import { checkImage, kernelImage } from './image.ts';
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
  /** Called before each check with what it looks at. */
  readonly onCheck?: (what: string) => void;
}

type Look = (session: Session) => Walk<Finding[]>;

export function* check(session: Session, options: CheckOptions): Walk<Finding[]> {
  const { baseline, states = [], vmlinux, onCheck } = options;
  // What the caller named has to fit: without it a guest would be found well that was not compared.
  const image = vmlinux && kernelImage(session, vmlinux);
  const known = comparable(session, baseline);
  const looks: readonly (readonly [string, Look])[] = [
    ['text', (look) => checkText(look, known)],
    ...(image === undefined ? [] : [['vmlinux', (look: Session) => checkImage(look, image)] as const]),
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
  for (const [what, look] of looks) {
    onCheck?.(what);
    add(yield* session.attempt(what, confirmed(session, look), []));
  }
  onCheck?.('hidden processes');
  add(yield* session.attempt('hidden processes', hiddenProcesses(session), []));
  return [...findings.values()];
}

/** The baseline, which has to be of this boot. */
function comparable(session: Session, baseline: Baseline | undefined): Baseline | undefined {
  if (baseline === undefined) return undefined;
  const { kernel } = session;
  if (baseline.banner === kernel.banner && baseline.text.start === session.symbol('_stext')) return baseline;
  throw new KvmiError('E_BASELINE', 'the baseline is of another boot or of another kernel', {
    hint: 'Make a new one with `kvmi check VM --save-baseline FILE` while the guest is well.',
  });
}

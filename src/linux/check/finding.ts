import type { Gva } from '../../machine/index.ts';
import type { Walk } from '../../reading/walk.ts';
import type { Session } from '../session.ts';

/** Something that is not as it should be, with the evidence. */
export interface Finding {
  readonly check:
    | 'text'
    | 'syscall'
    | 'interrupt'
    | 'entry'
    | 'hidden-process'
    | 'hidden-module'
    | 'credentials'
    | 'hook';
  /** What it is about: a function, a system call, a process. */
  readonly subject: string;
  /** Where the evidence is in the guest's memory. */
  readonly address: Gva;
  readonly expected: string;
  readonly found: string;
}

/**
 * What two more looks at the guest find as well. A running guest changes while it is read, so that one look sees
 * things that never were.
 */
export function* confirmed(session: Session, look: (session: Session) => Walk<Finding[]>): Walk<Finding[]> {
  let findings = yield* look(session);
  for (let i = 0; i < MORE_LOOKS && findings.length > 0; i++) {
    const seen = new Set((yield* look(session.again())).map(identityOf));
    findings = findings.filter((finding) => seen.has(identityOf(finding)));
  }
  return findings;
}

const MORE_LOOKS = 2;

function identityOf({ check, subject, address, found }: Finding): string {
  return JSON.stringify([check, subject, String(address), found]);
}

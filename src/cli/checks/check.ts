/** How a check went: what works, what is worth knowing, what does not work, what stops everything. */
export type Severity = 'ok' | 'info' | 'warning' | 'error';

export interface Finding {
  readonly severity: Severity;
  /** What was found. */
  readonly found: string;
  /** What the user can do to get it. */
  readonly remedy?: string;
  /** Set when one check looks at several things: which one this is about. */
  readonly about?: string;
}

/** Something that a host may or may not have. */
export interface Check {
  readonly name: string;
  /** What works because of it. */
  readonly enables: string;
  examine(): Finding | readonly Finding[] | Promise<Finding | readonly Finding[]>;
}

export function ok(found: string): Finding {
  return { severity: 'ok', found };
}

/** What may be wrong with a guest after a round, each with a column in the closing table. */
export const FAULTS = [
  'frozen',
  'panics',
  'bytes changed',
  'processes',
  'stubs',
  'sockets',
  'files',
  'other',
] as const;

export type FaultKind = (typeof FAULTS)[number];

export interface Fault {
  readonly kind: FaultKind;
  readonly count: number;
  readonly what: string;
}

export function fault(kind: FaultKind, what: string, count = 1): Fault {
  return { kind, count, what };
}

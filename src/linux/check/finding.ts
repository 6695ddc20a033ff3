/** Something that is not as it should be, with the evidence. */
export interface Finding {
  readonly check:
    | 'text'
    | 'syscall'
    | 'interrupt'
    | 'entry'
    | 'hidden-process'
    | 'hidden-module'
    | 'credentials';
  /** What it is about: a function, a system call, a process. */
  readonly subject: string;
  /** Where the evidence is in the guest's memory. */
  readonly address: string;
  readonly expected: string;
  readonly found: string;
}

import type { ColumnOf } from '../../rows/columns.ts';
import type { Finding } from '../check/index.ts';

export const FINDING_COLUMNS: readonly ColumnOf<Finding>[] = [
  {
    name: 'check',
    kind: 'text',
    key: true,
    about: 'text, syscall, interrupt, entry, hook, hidden-process, hidden-module or credentials',
  },
  { name: 'subject', kind: 'text', key: true, about: 'a function, a system call, a process, a module' },
  { name: 'address', kind: 'hex', about: 'where the evidence is in guest memory' },
  { name: 'expected', kind: 'text', cut: true, about: 'what should be there' },
  { name: 'found', kind: 'text', cut: true, about: 'what is there' },
];

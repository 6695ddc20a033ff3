import type { ColumnOf } from '../../rows/columns.ts';
import type { EnvironmentVariable } from '../environment.ts';
import type { Process, Thread, TreeRow } from '../tasks.ts';

export const PROCESS_COLUMNS: readonly ColumnOf<Process>[] = [
  { name: 'pid', kind: 'decimal', key: true, about: 'id of the process' },
  { name: 'ppid', kind: 'decimal', about: 'id of its parent' },
  { name: 'uid', kind: 'decimal', drop: 1, about: 'effective user' },
  { name: 'gid', kind: 'decimal', wide: true, about: 'effective group' },
  { name: 'state', kind: 'text', about: 'the letter of ps(1): R, S, D, T, t, X, Z, P, I' },
  { name: 'threads', kind: 'decimal', wide: true, about: 'number of its threads' },
  { name: 'resident', kind: 'size', about: 'memory that it has, as far as the kernel has summed it up' },
  {
    name: 'started',
    kind: 'date',
    cell: ({ startTime }) => startTime,
    about: "when, by the guest's clock",
  },
  { name: 'comm', kind: 'text', drop: 2, about: 'its name, which it can choose' },
  {
    name: 'command',
    kind: 'text',
    cut: true,
    cell: ({ commandLine, kernelThread, comm }) => (kernelThread ? `[${comm}]` : commandLine.join(' ')),
    about: 'its command line, which it can change; the name of a kernel thread in brackets',
  },
  {
    name: 'exe',
    kind: 'text',
    wide: true,
    cell: ({ exe }) => exe || undefined,
    about: 'path of what it executes',
  },
  {
    name: 'kernel-thread',
    kind: 'boolean',
    wide: true,
    cell: (row) => row.kernelThread,
    about: 'has no program',
  },
  {
    name: 'container',
    kind: 'text',
    wide: true,
    cell: ({ container }) => container || undefined,
    about: 'the id that a container runtime gave it',
  },
  { name: 'cgroup', kind: 'text', wide: true, cell: (row) => row.controlGroup, about: 'its control group' },
  { name: 'address', kind: 'hex', wide: true, about: 'of its task_struct' },
];

export const TREE_COLUMNS: readonly ColumnOf<TreeRow>[] = [
  ...PROCESS_COLUMNS,
  { name: 'depth', kind: 'decimal', wide: true, about: 'number of its ancestors' },
];

export const THREAD_COLUMNS: readonly ColumnOf<Thread>[] = [
  { name: 'pid', kind: 'decimal', about: 'id of the process' },
  { name: 'tid', kind: 'decimal', key: true, about: 'id of the thread' },
  { name: 'state', kind: 'text', about: 'the letter of ps(1)' },
  { name: 'cpu', kind: 'decimal', about: 'the processor on which it runs or ran last' },
  { name: 'comm', kind: 'text', about: 'its name' },
  { name: 'address', kind: 'hex', wide: true, about: 'of its task_struct' },
];

export const ENVIRONMENT_COLUMNS: readonly ColumnOf<EnvironmentVariable>[] = [
  { name: 'name', kind: 'text', key: true, about: 'of the variable' },
  { name: 'value', kind: 'text', about: 'what it had when the process was started' },
  { name: 'pid', kind: 'decimal', wide: true, about: 'id of the process' },
];

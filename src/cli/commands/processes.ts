import type { EnvironmentVariable, Process, Thread, TreeRow } from '../../linux/index.ts';
import { printable } from '../../rows/printable.ts';
import { argument, command, optionalArgument } from '../command.ts';
import { LINUX_OPTIONS, type LinuxColumn, linuxRows, ofProcess, PID_ABOUT, pid } from '../linux.ts';
import { OPTIONAL_VM, VM } from '../targets.ts';

const PROCESS_COLUMNS: readonly LinuxColumn<Process>[] = [
  { name: 'pid', kind: 'decimal', key: true, about: 'id of the process' },
  { name: 'ppid', kind: 'decimal', about: 'id of its parent' },
  { name: 'uid', kind: 'decimal', about: 'effective user' },
  { name: 'gid', kind: 'decimal', wide: true, about: 'effective group' },
  { name: 'state', kind: 'text', about: 'the letter of ps(1): R, S, D, T, t, X, Z, P, I' },
  { name: 'threads', kind: 'decimal', wide: true, about: 'number of its threads' },
  { name: 'resident', kind: 'size', about: 'memory that it has, as far as the kernel has summed it up' },
  {
    name: 'started',
    kind: 'text',
    cell: ({ startTime }) => startTime || undefined,
    about: "when, by the guest's clock (RFC 3339)",
  },
  { name: 'comm', kind: 'text', about: 'its name, which it can choose' },
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

export const ps = command({
  name: 'ps',
  summary: 'show the processes of a Linux guest',
  description: [
    "Reads the kernel's structures in guest memory. The guest is not hooked and runs on; what changes while it is " +
      'read may be missed. `kvmi check` finds processes that are hidden from this list.',
  ],
  arguments: [OPTIONAL_VM],
  options: LINUX_OPTIONS,
  examples: [
    { command: 'kvmi ps VM', does: 'what runs in the guest' },
    { command: "kvmi ps VM --filter kernel-thread=no --filter 'uid=0'", does: 'programs with all rights' },
    { command: 'kvmi ps file:vm.elf -o json', does: 'of a memory dump, for a program' },
  ],
  columns: PROCESS_COLUMNS,
  run: (context, [vm], options) =>
    linuxRows(context, vm, options, PROCESS_COLUMNS, (linux) => linux.processes()),
});

const TREE_COLUMNS: readonly LinuxColumn<TreeRow>[] = [
  ...PROCESS_COLUMNS,
  { name: 'depth', kind: 'decimal', wide: true, about: 'number of its ancestors' },
];

export const tree = command({
  name: 'tree',
  summary: 'show the processes of a Linux guest as a tree',
  arguments: [OPTIONAL_VM],
  options: LINUX_OPTIONS,
  examples: [
    { command: 'kvmi tree VM', does: 'who started what' },
    { command: 'kvmi tree VM --filter kernel-thread=no', does: 'without kernel threads' },
  ],
  columns: TREE_COLUMNS,
  async *text(rows, theme) {
    for await (const { pid: id, depth, command: line, comm } of rows) {
      const name = printable(String(line || comm));
      yield `${'  '.repeat(Number(depth))}${name} ${theme.dim(`(${id})`)}`;
    }
  },
  run: (context, [vm], options) => linuxRows(context, vm, options, TREE_COLUMNS, (linux) => linux.tree()),
});

const THREAD_COLUMNS: readonly LinuxColumn<Thread>[] = [
  { name: 'pid', kind: 'decimal', about: 'id of the process' },
  { name: 'tid', kind: 'decimal', key: true, about: 'id of the thread' },
  { name: 'state', kind: 'text', about: 'the letter of ps(1)' },
  { name: 'cpu', kind: 'decimal', about: 'the processor on which it runs or ran last' },
  { name: 'comm', kind: 'text', about: 'its name' },
  { name: 'address', kind: 'hex', wide: true, about: 'of its task_struct' },
];

export const threads = command({
  name: 'threads',
  summary: 'show the threads of a Linux guest',
  arguments: [VM, optionalArgument('PID', `${PID_ABOUT}; all unless given`, pid)],
  options: LINUX_OPTIONS,
  examples: [
    { command: 'kvmi threads VM 1', does: 'of one process' },
    { command: 'kvmi threads VM --filter state=D', does: 'what waits for a device' },
  ],
  columns: THREAD_COLUMNS,
  run: (context, [vm, id], options) =>
    linuxRows(context, vm, options, THREAD_COLUMNS, (linux) => ofProcess(linux, id, linux.threads(id))),
});

const ENVIRONMENT_COLUMNS: readonly LinuxColumn<EnvironmentVariable>[] = [
  { name: 'name', kind: 'text', key: true, about: 'of the variable' },
  { name: 'value', kind: 'text', about: 'what it had when the process was started' },
  { name: 'pid', kind: 'decimal', wide: true, about: 'id of the process' },
];

export const env = command({
  name: 'env',
  summary: 'show the environment of a process in a Linux guest',
  description: [
    'That it was started with, as far as it is in memory and the process has not overwritten it.',
  ],
  arguments: [VM, argument('PID', PID_ABOUT, pid)],
  options: LINUX_OPTIONS,
  examples: [{ command: 'kvmi env VM 1', does: 'the environment of init' }],
  columns: ENVIRONMENT_COLUMNS,
  async *text(rows) {
    for await (const { name, value } of rows) yield printable(`${name}=${value}`);
  },
  run: (context, [vm, id], options) =>
    linuxRows(context, vm, options, ENVIRONMENT_COLUMNS, (linux) =>
      ofProcess(linux, id, linux.environment(id)),
    ),
});

import {
  ENVIRONMENT_COLUMNS,
  PROCESS_COLUMNS,
  THREAD_COLUMNS,
  TREE_COLUMNS,
} from '../../linux/rows/processes.ts';
import { printable } from '../../rows/printable.ts';
import { argument, command, optionalArgument } from '../command.ts';
import { LINUX_OPTIONS, linuxRows, ofProcess, PID_ABOUT, processRef } from '../linux.ts';
import { OPTIONAL_VM, VM } from '../targets.ts';

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
  nothing: 'no processes',
  columns: PROCESS_COLUMNS,
  run: (context, [vm], options) =>
    linuxRows(context, vm, options, PROCESS_COLUMNS, (linux) => linux.processes()),
});

export const tree = command({
  name: 'tree',
  summary: 'show the processes of a Linux guest as a tree',
  arguments: [OPTIONAL_VM],
  options: LINUX_OPTIONS,
  examples: [
    { command: 'kvmi tree VM', does: 'who started what' },
    { command: 'kvmi tree VM --filter kernel-thread=no', does: 'without kernel threads' },
  ],
  nothing: 'no processes',
  columns: TREE_COLUMNS,
  async *text(rows, theme) {
    for await (const { pid: id, depth, command: line, comm } of rows) {
      const name = printable(String(line || comm));
      yield `${'  '.repeat(Number(depth))}${name} ${theme.dim(`(${id})`)}`;
    }
  },
  run: (context, [vm], options) => linuxRows(context, vm, options, TREE_COLUMNS, (linux) => linux.tree()),
});

export const threads = command({
  name: 'threads',
  summary: 'show the threads of a Linux guest',
  arguments: [VM, optionalArgument('PID', `${PID_ABOUT}; all unless given`, processRef)],
  options: LINUX_OPTIONS,
  examples: [
    { command: 'kvmi threads VM 1', does: 'of one process' },
    { command: 'kvmi threads VM --filter state=D', does: 'what waits for a device' },
  ],
  nothing: 'no threads',
  columns: THREAD_COLUMNS,
  run: (context, [vm, id], options) =>
    linuxRows(context, vm, options, THREAD_COLUMNS, (linux) =>
      id === undefined ? linux.threads() : ofProcess(linux, id, (one) => linux.threads(one)),
    ),
});

export const env = command({
  name: 'env',
  summary: 'show the environment of a process in a Linux guest',
  description: [
    'That it was started with, as far as it is in memory and the process has not overwritten it.',
  ],
  arguments: [VM, argument('PID', PID_ABOUT, processRef)],
  options: LINUX_OPTIONS,
  examples: [{ command: 'kvmi env VM 1', does: 'the environment of init' }],
  nothing: 'no environment: it is a kernel thread, or its memory is swapped out',
  columns: ENVIRONMENT_COLUMNS,
  async *text(rows) {
    for await (const { name, value } of rows) yield printable(`${name}=${value}`);
  },
  run: (context, [vm, id], options) =>
    linuxRows(context, vm, options, ENVIRONMENT_COLUMNS, (linux) =>
      ofProcess(linux, id, (one) => linux.environment(one)),
    ),
});

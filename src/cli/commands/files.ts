import { FILE_COLUMNS, MAP_COLUMNS, MOUNT_COLUMNS, SOCKET_COLUMNS } from '../../linux/rows/files.ts';
import { argument, command, optionalArgument, valueOption } from '../command.ts';
import { LINUX_OPTIONS, linuxRows, ofProcess, PID_ABOUT, processRef } from '../linux.ts';
import { OPTIONAL_VM, VM } from '../targets.ts';

export const maps = command({
  name: 'maps',
  summary: 'show the memory map of a process in a Linux guest',
  arguments: [VM, argument('PID', PID_ABOUT, processRef)],
  options: LINUX_OPTIONS,
  examples: [
    { command: 'kvmi maps VM 1', does: 'what init has mapped' },
    { command: "kvmi maps VM 1 --filter 'protection~wx'", does: 'what can be written and executed' },
  ],
  nothing: 'no mappings: it is a kernel thread',
  columns: MAP_COLUMNS,
  run: (context, [vm, id], options) =>
    linuxRows(context, vm, options, MAP_COLUMNS, (linux) => ofProcess(linux, id, (one) => linux.maps(one))),
});

export const files = command({
  name: 'files',
  summary: 'show the open files of a Linux guest',
  arguments: [VM, optionalArgument('PID', `${PID_ABOUT}; all unless given`, processRef)],
  options: LINUX_OPTIONS,
  examples: [
    { command: 'kvmi files VM 1', does: 'of one process' },
    { command: "kvmi files VM --filter 'path~deleted'", does: 'files that are deleted and still in use' },
  ],
  nothing: 'no open files',
  columns: FILE_COLUMNS,
  run: (context, [vm, id], options) =>
    linuxRows(context, vm, options, FILE_COLUMNS, (linux) =>
      id === undefined ? linux.files() : ofProcess(linux, id, (one) => linux.files(one)),
    ),
});

export const sockets = command({
  name: 'sockets',
  summary: 'show the sockets of a Linux guest',
  description: ['TCP, UDP and Unix sockets of all network namespaces.'],
  arguments: [OPTIONAL_VM],
  options: LINUX_OPTIONS,
  examples: [
    { command: 'kvmi sockets VM --filter state=LISTEN', does: 'who can be connected to' },
    { command: "kvmi sockets VM --filter 'remote-port=443' -c comm,remote", does: 'who talks HTTPS' },
  ],
  nothing: 'no sockets',
  columns: SOCKET_COLUMNS,
  run: (context, [vm], options) =>
    linuxRows(context, vm, options, SOCKET_COLUMNS, (linux) => linux.sockets()),
});

export const mounts = command({
  name: 'mounts',
  summary: 'show the mounted file systems of a Linux guest',
  arguments: [OPTIONAL_VM],
  options: {
    ...LINUX_OPTIONS,
    pid: valueOption('--pid <PID>', 'as that process sees them; as init does unless given', processRef),
  },
  examples: [{ command: 'kvmi mounts VM', does: 'the mounts that init sees' }],
  nothing: 'no mounts',
  columns: MOUNT_COLUMNS,
  run: (context, [vm], options) =>
    linuxRows(context, vm, options, MOUNT_COLUMNS, (linux) =>
      options.pid === undefined ? linux.mounts() : ofProcess(linux, options.pid, (one) => linux.mounts(one)),
    ),
});

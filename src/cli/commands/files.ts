import type { MemoryMap, Mount, OpenFile, Socket } from '../../linux/index.ts';
import { argument, command, optionalArgument, valueOption } from '../command.ts';
import { LINUX_OPTIONS, type LinuxColumn, linuxRows, ofProcess, PID_ABOUT, pid } from '../linux.ts';
import { OPTIONAL_VM, VM } from '../targets.ts';

const MAP_COLUMNS: readonly LinuxColumn<MemoryMap>[] = [
  { name: 'start', kind: 'hex', key: true, about: 'first address' },
  { name: 'end', kind: 'hex', about: 'the address behind the last one' },
  { name: 'size', kind: 'size', about: 'of the range' },
  { name: 'protection', kind: 'text', about: '`rwxp` or `rwxs`, with `-` for what is not allowed' },
  { name: 'offset', kind: 'hex', wide: true, about: 'in the file' },
  { name: 'device', kind: 'text', wide: true, about: 'major:minor in hexadecimal' },
  { name: 'inode', kind: 'decimal', wide: true, about: 'of the file' },
  { name: 'path', kind: 'text', cut: true, about: 'a file, or `[heap]`, `[stack]`, …' },
  { name: 'pid', kind: 'decimal', wide: true, about: 'id of the process' },
];

export const maps = command({
  name: 'maps',
  summary: 'show the memory map of a process in a Linux guest',
  arguments: [VM, argument('PID', PID_ABOUT, pid)],
  options: LINUX_OPTIONS,
  examples: [
    { command: 'kvmi maps VM 1', does: 'what init has mapped' },
    { command: "kvmi maps VM 1 --filter 'protection~wx'", does: 'what can be written and executed' },
  ],
  columns: MAP_COLUMNS,
  run: (context, [vm, id], options) =>
    linuxRows(context, vm, options, MAP_COLUMNS, (linux) => ofProcess(linux, id, linux.maps(id))),
});

const FILE_COLUMNS: readonly LinuxColumn<OpenFile>[] = [
  { name: 'pid', kind: 'decimal', key: true, about: 'id of the process' },
  { name: 'comm', kind: 'text', about: 'name of the process' },
  { name: 'fd', kind: 'decimal', key: true, about: 'file descriptor' },
  {
    name: 'type',
    kind: 'text',
    about: 'file, directory, character, block, pipe, socket, link or anonymous',
  },
  { name: 'access', kind: 'text', about: 'r, w or rw; empty for a file that was opened with O_PATH' },
  { name: 'position', kind: 'decimal', wide: true, about: 'in bytes' },
  { name: 'inode', kind: 'decimal', wide: true, about: 'of the file' },
  { name: 'path', kind: 'text', cut: true, about: 'of the file, or what it is' },
  { name: 'address', kind: 'hex', wide: true, about: 'of its struct file' },
];

export const files = command({
  name: 'files',
  summary: 'show the open files of a Linux guest',
  arguments: [VM, optionalArgument('PID', `${PID_ABOUT}; all unless given`, pid)],
  options: LINUX_OPTIONS,
  examples: [
    { command: 'kvmi files VM 1', does: 'of one process' },
    { command: "kvmi files VM --filter 'path~deleted'", does: 'files that are deleted and still in use' },
  ],
  columns: FILE_COLUMNS,
  run: (context, [vm, id], options) =>
    linuxRows(context, vm, options, FILE_COLUMNS, (linux) => ofProcess(linux, id, linux.files(id))),
});

/** Where one end of a connection is. */
function endpoint(address: string, port: number): string {
  if (address === '') return '';
  return address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`;
}

const SOCKET_COLUMNS: readonly LinuxColumn<Socket>[] = [
  { name: 'protocol', kind: 'text', about: 'tcp, tcp6, udp, udp6 or unix' },
  { name: 'state', kind: 'text', about: 'as ss(8) names it' },
  {
    name: 'local',
    kind: 'text',
    cut: true,
    cell: (row) => row.path || endpoint(row.localAddress, row.localPort),
    about: 'address and port, or the path of a Unix socket; `@` stands for the abstract namespace',
  },
  {
    name: 'remote',
    kind: 'text',
    cell: (row) => endpoint(row.remoteAddress, row.remotePort),
    about: 'address and port of the peer',
  },
  {
    name: 'local-port',
    kind: 'decimal',
    wide: true,
    cell: (row) => (row.protocol === 'unix' ? undefined : row.localPort),
    about: 'the port alone',
  },
  {
    name: 'remote-port',
    kind: 'decimal',
    wide: true,
    cell: (row) => (row.protocol === 'unix' ? undefined : row.remotePort),
    about: 'the port alone',
  },
  {
    name: 'pid',
    kind: 'decimal',
    cell: (row) => (row.pid === 0 ? undefined : row.pid),
    about: 'the process that has it open',
  },
  { name: 'comm', kind: 'text', about: 'name of that process' },
  { name: 'uid', kind: 'decimal', wide: true, about: 'the user that owns it' },
  { name: 'inode', kind: 'decimal', wide: true, about: 'of the socket' },
  { name: 'namespace', kind: 'decimal', wide: true, about: 'number of the network namespace' },
  { name: 'address', kind: 'hex', wide: true, key: true, about: 'of its struct sock' },
];

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
  columns: SOCKET_COLUMNS,
  run: (context, [vm], options) =>
    linuxRows(context, vm, options, SOCKET_COLUMNS, (linux) => linux.sockets()),
});

const MOUNT_COLUMNS: readonly LinuxColumn<Mount>[] = [
  { name: 'path', kind: 'text', key: true, about: 'where it is mounted' },
  { name: 'source', kind: 'text', about: 'what is mounted: a device, or a name' },
  { name: 'type', kind: 'text', cell: (row) => row.fileSystem, about: 'of the file system' },
  { name: 'readonly', kind: 'boolean', about: 'cannot be written to' },
  { name: 'device', kind: 'text', wide: true, about: 'major:minor' },
  { name: 'id', kind: 'decimal', wide: true, about: 'of the mount' },
  {
    name: 'parent',
    kind: 'decimal',
    wide: true,
    cell: (row) => row.parentId,
    about: 'the mount that it is on',
  },
  { name: 'address', kind: 'hex', wide: true, about: 'of its struct mount' },
];

export const mounts = command({
  name: 'mounts',
  summary: 'show the mounted file systems of a Linux guest',
  arguments: [OPTIONAL_VM],
  options: {
    ...LINUX_OPTIONS,
    pid: valueOption('--pid <PID>', 'as that process sees them; as init does unless given', pid),
  },
  examples: [{ command: 'kvmi mounts VM', does: 'the mounts that init sees' }],
  columns: MOUNT_COLUMNS,
  run: (context, [vm], options) =>
    linuxRows(context, vm, options, MOUNT_COLUMNS, (linux) =>
      ofProcess(linux, options.pid, linux.mounts(options.pid)),
    ),
});

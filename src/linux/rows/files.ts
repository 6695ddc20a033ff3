import type { ColumnOf } from '../../rows/columns.ts';
import type { OpenFile } from '../files.ts';
import type { MemoryMap } from '../maps.ts';
import type { Mount } from '../mounts.ts';
import type { Socket } from '../sockets.ts';

export const MAP_COLUMNS: readonly ColumnOf<MemoryMap>[] = [
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

export const FILE_COLUMNS: readonly ColumnOf<OpenFile>[] = [
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

/** Where one end of a connection is. */
function endpoint(address: string, port: number): string {
  if (address === '') return '';
  return address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`;
}

export const SOCKET_COLUMNS: readonly ColumnOf<Socket>[] = [
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

export const MOUNT_COLUMNS: readonly ColumnOf<Mount>[] = [
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

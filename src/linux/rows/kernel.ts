import type { ColumnOf } from '../../rows/columns.ts';
import type { BpfProgram } from '../bpf.ts';
import type { Hook } from '../check/index.ts';
import type { LogRecord } from '../log.ts';
import type { Module } from '../modules.ts';
import type { SystemInfo } from '../system.ts';

export const MODULE_COLUMNS: readonly ColumnOf<Module>[] = [
  { name: 'name', kind: 'text', key: true, about: 'of the module' },
  { name: 'size', kind: 'size', about: 'memory that it takes' },
  { name: 'references', kind: 'decimal', about: 'how often it is in use' },
  { name: 'users', kind: 'list', about: 'modules that need it' },
  { name: 'state', kind: 'text', about: 'live, coming, going or unformed' },
  {
    name: 'taints',
    kind: 'text',
    about: 'letters as in /proc/modules: O out of tree, E unsigned, P proprietary, …',
  },
  { name: 'base', kind: 'hex', about: 'where its code starts' },
  { name: 'address', kind: 'hex', wide: true, about: 'of its struct module' },
];

export const LOG_COLUMNS: readonly ColumnOf<LogRecord>[] = [
  { name: 'sequence', kind: 'decimal', wide: true, key: true, about: 'number of the record' },
  {
    name: 'time',
    kind: 'text',
    cell: ({ timeNs }) => (Number(timeNs / 1000n) / 1e6).toFixed(6),
    about: 'seconds since the guest booted',
  },
  { name: 'level', kind: 'decimal', about: '0 emergency … 3 error, 4 warning … 7 debug' },
  { name: 'facility', kind: 'decimal', wide: true, about: 'who wrote it, as in syslog; 0 is the kernel' },
  { name: 'text', kind: 'text', about: 'the record' },
];

export const SYSTEM_COLUMNS: readonly ColumnOf<SystemInfo>[] = [
  { name: 'node', kind: 'text', key: true, about: 'the host name that the guest has given itself' },
  { name: 'release', kind: 'text', about: 'of the kernel' },
  { name: 'version', kind: 'text', about: 'of the kernel: number, options and date of the build' },
  { name: 'boot-time', kind: 'date', cell: (row) => row.bootTime, about: "by the guest's clock" },
  { name: 'time', kind: 'date', about: "the guest's clock" },
  {
    name: 'uptime',
    kind: 'decimal',
    cell: (row) => Math.round(row.uptimeSeconds),
    about: 'seconds since it booted',
  },
  {
    name: 'build-id',
    kind: 'text',
    wide: true,
    cell: (row) => row.buildId || undefined,
    about: 'of the kernel',
  },
  { name: 'banner', kind: 'text', wide: true, about: 'what the kernel says first when it boots' },
  {
    name: 'address-bits',
    kind: 'decimal',
    wide: true,
    cell: (row) => row.addressBits,
    about: '48 or 57: the width of virtual addresses',
  },
];

export const HOOK_COLUMNS: readonly ColumnOf<Hook>[] = [
  { name: 'kind', kind: 'text', about: 'ftrace, kprobe or ebpf' },
  { name: 'place', kind: 'text', about: 'the symbol, with an offset; empty where the mechanism decides' },
  { name: 'handler', kind: 'text', about: 'what is called' },
  { name: 'address', kind: 'hex', key: true, about: "of the kernel's object for it" },
];

export const BPF_COLUMNS: readonly ColumnOf<BpfProgram>[] = [
  { name: 'id', kind: 'decimal', key: true, about: 'of the program' },
  { name: 'type', kind: 'text', about: 'of the program' },
  { name: 'name', kind: 'text', about: 'that it was loaded with' },
  { name: 'tag', kind: 'text', about: 'hash of its code' },
  {
    name: 'loaded',
    kind: 'date',
    cell: (row) => row.loadTime,
    about: "when, by the guest's clock",
  },
  {
    name: 'attached-to',
    kind: 'text',
    cell: (row) => row.attachedTo || undefined,
    about: 'the kernel function, for the types that have one',
  },
  { name: 'jited', kind: 'boolean', wide: true, about: 'compiled' },
  { name: 'code', kind: 'hex', wide: true, about: 'where its code is' },
  { name: 'address', kind: 'hex', wide: true, about: "of the kernel's object for it" },
];

import type { BpfProgram, Hook, LogRecord, Module, SystemInfo } from '../../linux/index.ts';
import { printable } from '../../rows/printable.ts';
import { command } from '../command.ts';
import { LINUX_OPTIONS, type LinuxColumn, linuxRows } from '../linux.ts';
import { OPTIONAL_VM } from '../targets.ts';

const MODULE_COLUMNS: readonly LinuxColumn<Module>[] = [
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

export const modules = command({
  name: 'modules',
  summary: 'show the kernel modules of a Linux guest',
  description: ['`kvmi check` finds modules that are hidden from this list.'],
  arguments: [OPTIONAL_VM],
  options: LINUX_OPTIONS,
  examples: [
    {
      command: "kvmi modules VM --filter 'taints~[OE]'",
      does: 'modules that the distribution did not build',
    },
  ],
  columns: MODULE_COLUMNS,
  run: (context, [vm], options) =>
    linuxRows(context, vm, options, MODULE_COLUMNS, (linux) => linux.modules()),
});

const LOG_COLUMNS: readonly LinuxColumn<LogRecord>[] = [
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
const LEVEL_ERROR = 3;
const LEVEL_WARNING = 4;

export const dmesg = command({
  name: 'dmesg',
  summary: 'show the kernel log of a Linux guest',
  arguments: [OPTIONAL_VM],
  options: LINUX_OPTIONS,
  examples: [
    { command: 'kvmi dmesg VM', does: 'the whole log, oldest record first' },
    { command: "kvmi dmesg VM --filter 'level<=3'", does: 'errors only' },
  ],
  columns: LOG_COLUMNS,
  async *text(rows, theme) {
    for await (const { time, level, text } of rows) {
      const paint =
        Number(level) <= LEVEL_ERROR ? theme.red : Number(level) === LEVEL_WARNING ? theme.yellow : String;
      const stamp = theme.dim(`[${String(time).padStart(12)}]`);
      for (const line of String(text).split('\n')) yield `${stamp} ${paint(printable(line))}`;
    }
  },
  run: (context, [vm], options) => linuxRows(context, vm, options, LOG_COLUMNS, (linux) => linux.log()),
});

const SYSTEM_COLUMNS: readonly LinuxColumn<SystemInfo>[] = [
  { name: 'node', kind: 'text', key: true, about: 'the host name that the guest has given itself' },
  { name: 'release', kind: 'text', about: 'of the kernel' },
  { name: 'version', kind: 'text', about: 'of the kernel: number, options and date of the build' },
  { name: 'boot-time', kind: 'text', cell: (row) => row.bootTime, about: "by the guest's clock (RFC 3339)" },
  { name: 'time', kind: 'text', about: "the guest's clock (RFC 3339)" },
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

export const system = command({
  name: 'system',
  summary: 'show what a Linux guest is: kernel, name, clock',
  arguments: [OPTIONAL_VM],
  options: LINUX_OPTIONS,
  examples: [{ command: 'kvmi system VM -o json', does: 'for a program' }],
  columns: SYSTEM_COLUMNS,
  async *text(rows, theme) {
    for await (const row of rows) {
      for (const { name } of SYSTEM_COLUMNS)
        yield `${theme.bold(name.padEnd(14))}${printable(String(row[name] ?? ''))}`;
    }
  },
  run: (context, [vm], options) => linuxRows(context, vm, options, SYSTEM_COLUMNS, (linux) => linux.system()),
});

const PROBE_COLUMNS: readonly LinuxColumn<Hook>[] = [
  { name: 'kind', kind: 'text', about: 'ftrace, kprobe or ebpf' },
  { name: 'place', kind: 'text', about: 'the symbol, with an offset; empty where the mechanism decides' },
  { name: 'handler', kind: 'text', about: 'what is called' },
  { name: 'address', kind: 'hex', key: true, about: "of the kernel's object for it" },
];

export const probes = command({
  name: 'probes',
  summary: 'show what ftrace, kprobes and eBPF have hooked in a Linux guest',
  description: ['None of it is a sign of manipulation by itself.'],
  arguments: [OPTIONAL_VM],
  options: LINUX_OPTIONS,
  examples: [{ command: 'kvmi probes VM --filter kind=kprobe', does: 'functions that are probed' }],
  columns: PROBE_COLUMNS,
  run: (context, [vm], options) => linuxRows(context, vm, options, PROBE_COLUMNS, (linux) => linux.hooks()),
});

const BPF_COLUMNS: readonly LinuxColumn<BpfProgram>[] = [
  { name: 'id', kind: 'decimal', key: true, about: 'of the program' },
  { name: 'type', kind: 'text', about: 'of the program' },
  { name: 'name', kind: 'text', about: 'that it was loaded with' },
  { name: 'tag', kind: 'text', about: 'hash of its code' },
  {
    name: 'loaded',
    kind: 'text',
    cell: (row) => row.loadTime || undefined,
    about: "when, by the guest's clock (RFC 3339)",
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

export const bpf = command({
  name: 'bpf',
  summary: 'show the eBPF programs of a Linux guest',
  arguments: [OPTIONAL_VM],
  options: LINUX_OPTIONS,
  examples: [{ command: 'kvmi bpf VM', does: 'what is loaded' }],
  columns: BPF_COLUMNS,
  run: (context, [vm], options) =>
    linuxRows(context, vm, options, BPF_COLUMNS, (linux) => linux.bpfPrograms()),
});

import {
  BPF_COLUMNS,
  HOOK_COLUMNS,
  LOG_COLUMNS,
  MODULE_COLUMNS,
  SYSTEM_COLUMNS,
} from '../../linux/rows/kernel.ts';
import { plainText } from '../../rows/columns.ts';
import { printable } from '../../rows/printable.ts';
import { command } from '../command.ts';
import { LINUX_OPTIONS, linuxRows } from '../linux.ts';
import { OPTIONAL_VM } from '../targets.ts';

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
  nothing: 'no modules',
  columns: MODULE_COLUMNS,
  run: (context, [vm], options) =>
    linuxRows(context, vm, options, MODULE_COLUMNS, (linux) => linux.modules()),
});

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
  nothing: 'the log is empty',
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

export const system = command({
  name: 'system',
  summary: 'show what a Linux guest is: kernel, name, clock',
  arguments: [OPTIONAL_VM],
  options: LINUX_OPTIONS,
  examples: [{ command: 'kvmi system VM -o json', does: 'for a program' }],
  columns: SYSTEM_COLUMNS,
  async *text(rows, theme) {
    for await (const row of rows) {
      for (const { name, kind } of SYSTEM_COLUMNS)
        yield `${theme.bold(name.padEnd(14))}${printable(plainText(kind, row[name]))}`;
    }
  },
  run: (context, [vm], options) => linuxRows(context, vm, options, SYSTEM_COLUMNS, (linux) => linux.system()),
});

export const probes = command({
  name: 'probes',
  summary: 'show what ftrace, kprobes and eBPF have hooked in a Linux guest',
  description: ['None of it is a sign of manipulation by itself.'],
  arguments: [OPTIONAL_VM],
  options: LINUX_OPTIONS,
  examples: [{ command: 'kvmi probes VM --filter kind=kprobe', does: 'functions that are probed' }],
  nothing: 'nothing is probed',
  columns: HOOK_COLUMNS,
  run: (context, [vm], options) => linuxRows(context, vm, options, HOOK_COLUMNS, (linux) => linux.hooks()),
});

export const bpf = command({
  name: 'bpf',
  summary: 'show the eBPF programs of a Linux guest',
  arguments: [OPTIONAL_VM],
  options: LINUX_OPTIONS,
  examples: [{ command: 'kvmi bpf VM', does: 'what is loaded' }],
  nothing: 'no eBPF programs',
  columns: BPF_COLUMNS,
  run: (context, [vm], options) =>
    linuxRows(context, vm, options, BPF_COLUMNS, (linux) => linux.bpfPrograms()),
});

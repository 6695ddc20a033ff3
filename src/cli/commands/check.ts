import { readFileSync } from 'node:fs';
import type { Finding } from '../../linux/index.ts';
import { command, valueOption } from '../command.ts';
import { UsageError } from '../errors.ts';
import { EXIT } from '../exit-codes.ts';
import { LINUX_OPTIONS, type LinuxColumn, linuxRows } from '../linux.ts';
import { OPTIONAL_VM } from '../targets.ts';
import { text } from '../values.ts';

const COLUMNS: readonly LinuxColumn<Finding>[] = [
  {
    name: 'check',
    kind: 'text',
    key: true,
    about: 'text, syscall, interrupt, entry, hidden-process, hidden-module or credentials',
  },
  { name: 'subject', kind: 'text', key: true, about: 'a function, a system call, a process, a module' },
  { name: 'address', kind: 'hex', about: 'where the evidence is in guest memory' },
  { name: 'expected', kind: 'text', cut: true, about: 'what should be there' },
  { name: 'found', kind: 'text', cut: true, about: 'what is there' },
];

function readVmlinux(path: string): Uint8Array {
  try {
    return readFileSync(path);
  } catch (error) {
    throw new UsageError(`--vmlinux ${path}: ${(error as Error).message}`);
  }
}

export const check = command({
  name: 'check',
  summary: 'look for signs of manipulation in a Linux guest',
  description: [
    'Code that was changed, system calls and interrupts that lead elsewhere, hidden processes and modules, stolen ' +
      `credentials. Ends with ${EXIT.alert.code} when there is something. No row means that nothing was found, not ` +
      'that nothing is there.',
  ],
  arguments: [OPTIONAL_VM],
  options: {
    ...LINUX_OPTIONS,
    vmlinux: valueOption(
      '--vmlinux <FILE>',
      "compare the kernel's code with its own, uncompressed vmlinux file",
      text,
    ),
  },
  examples: [
    { command: 'kvmi check VM', does: 'all checks that need no reference' },
    {
      command: 'kvmi check VM --vmlinux vmlinux --strict',
      does: 'compare the code, and fail when a part is missing',
    },
  ],
  columns: COLUMNS,
  run(context, [vm], options) {
    const vmlinux = options.vmlinux === undefined ? undefined : readVmlinux(options.vmlinux);
    return linuxRows(context, vm, options, COLUMNS, async (linux) => {
      const found = await linux.check(vmlinux === undefined ? {} : { vmlinux });
      if (found.rows.length > 0) context.exitWith(EXIT.alert.code);
      else context.log.note(`nothing was found in ${linux.kernel.release}`);
      return found;
    });
  },
});

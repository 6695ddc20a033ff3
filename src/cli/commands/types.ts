import { text } from '../../input/values.ts';
import { TYPE_COLUMNS, VALUE_COLUMNS } from '../../linux/rows/types.ts';
import type { Row } from '../../rows/columns.ts';
import { argument, command } from '../command.ts';
import { LINUX_OPTIONS, linuxRows, printed, withLinux } from '../linux.ts';
import { writeNewFile } from '../new-file.ts';
import { VM } from '../targets.ts';

export const type = command({
  name: 'type',
  summary: "show a type of a Linux guest's kernel",
  arguments: [
    VM,
    argument('NAME', 'of a structure or an enumeration: task_struct; MODULE:NAME for one of a module', text),
  ],
  options: LINUX_OPTIONS,
  examples: [
    { command: 'kvmi type VM task_struct', does: 'all members with their offsets' },
    { command: 'kvmi type VM task_struct --filter name=comm -c offset,type', does: 'where one member is' },
  ],
  nothing: 'no members',
  columns: TYPE_COLUMNS,
  run: (context, [vm, name], options) =>
    linuxRows(context, vm, options, TYPE_COLUMNS, (linux) => linux.type(name)),
});

export const print = command({
  name: 'print',
  summary: "show the value of a variable of a Linux guest's kernel",
  description: [
    'EXPRESSION is a variable or (TYPE)ADDRESS, then members and elements: `init_task.comm`, ' +
      '`init_task.mm->pgd`, `(task_struct)0xffff888003a10000.pid`. Types and symbols of modules are found as well: ' +
      '`(llc_sap)llc:some_variable`. There is a row for each value that has no parts.',
  ],
  arguments: [VM, argument('EXPRESSION', 'what to show, see below', text)],
  options: LINUX_OPTIONS,
  examples: [
    { command: 'kvmi print VM init_task.comm', does: 'one value' },
    { command: 'kvmi print VM init_task.cred', does: 'a pointer' },
    {
      command: "kvmi print VM '(task_struct)0xffffffff82a0a940.se' -o json",
      does: 'a structure at an address',
    },
  ],
  columns: VALUE_COLUMNS,
  run: (context, [vm, expression], options) =>
    withLinux(context, vm, options, async function* (linux) {
      const { valuesOf } = await import('../../linux/rows/values.ts');
      const { rows, reasons } = await linux.print(expression);
      yield* printed(context, VALUE_COLUMNS, { rows: rows.flatMap(valuesOf), reasons });
    }),
});

export const isf = command({
  name: 'isf',
  summary: "write a symbol file for Volatility 3, made of a Linux guest's own symbols and types",
  description: ['It fits every machine that runs the same kernel. Put it under volatility3/symbols/linux/.'],
  arguments: [VM, argument('FILE', 'to write; it must not exist', text)],
  options: LINUX_OPTIONS,
  examples: [{ command: 'kvmi isf VM linux.json', does: 'of the kernel that runs in the guest' }],
  columns: [
    { name: 'file', kind: 'text', key: true, about: 'that was written' },
    { name: 'release', kind: 'text', about: 'of the kernel' },
    { name: 'symbols', kind: 'decimal', about: 'number of symbols' },
    { name: 'types', kind: 'decimal', about: 'number of structures and unions' },
  ],
  run: (context, [vm, file], options) =>
    withLinux(context, vm, options, async function* (linux) {
      const { isf: isfOf, isfText } = await import('../../linux/index.ts');
      let written: Row;
      context.progress.say('collecting types and symbols');
      try {
        const content = await isfOf(linux);
        writeNewFile(file, isfText(content));
        written = {
          file,
          release: linux.kernel.release,
          symbols: Object.keys(content.symbols).length,
          types: Object.keys(content.user_types).length,
        };
      } finally {
        context.progress.clear();
      }
      yield written;
    }),
});

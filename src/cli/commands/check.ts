import { readFileSync } from 'node:fs';
import { messageOf, UsageError } from '../../error.ts';
import { text } from '../../input/values.ts';
import type { Baseline, CheckOptions, Finding, Linux, Rows } from '../../linux/index.ts';
import { FINDING_COLUMNS } from '../../linux/rows/findings.ts';
import type { Machine } from '../../machine/index.ts';
import { whilePaused } from '../../machine/paused.ts';
import { printable } from '../../rows/printable.ts';
import { command, type OptionValues, valueOption } from '../command.ts';
import type { Context } from '../context.ts';
import { EXIT } from '../exit-codes.ts';
import { LINUX_OPTIONS, printed, withLinux } from '../linux.ts';
import { writeNewFile } from '../new-file.ts';
import { OPTIONAL_VM } from '../targets.ts';

const OPTIONS = {
  ...LINUX_OPTIONS,
  vmlinux: valueOption(
    '--vmlinux <FILE>',
    "compare the kernel's code with its own file: vmlinux, vmlinuz, or Debian's package of it",
    text,
  ),
  baseline: valueOption(
    '--baseline <FILE>',
    'compare with what --save-baseline wrote in the same boot',
    text,
  ),
  saveBaseline: valueOption(
    '--save-baseline <FILE>',
    'write what a later check compares with to a new file; nothing else is done',
    text,
  ),
} as const;

async function readBaseline(path: string): Promise<Baseline> {
  const { baselineFromBytes } = await import('../../linux/index.ts');
  let bytes: Uint8Array;
  try {
    bytes = readFileSync(path);
  } catch (error) {
    throw new UsageError(`--baseline ${path}: ${(error as Error).message}`);
  }
  return baselineFromBytes(bytes);
}

async function referencesOf(context: Context, options: OptionValues<typeof OPTIONS>): Promise<CheckOptions> {
  const { vmlinux, baseline } = options;
  if (vmlinux !== undefined) context.progress.say(`reading ${printable(vmlinux)}`);
  const { readKernelFile } = await import('../../linux/kernel-file.ts');
  return {
    ...(vmlinux !== undefined && { vmlinux: await readKernelFile(vmlinux) }),
    ...(baseline !== undefined && { baseline: await readBaseline(baseline) }),
  };
}

/** The states of the vCPUs, each taken out of the guest for a moment; says why they are missing when they are. */
async function statesOf(context: Context, machine: Machine): Promise<readonly Uint8Array[]> {
  try {
    return await whilePaused(machine, context.signal, async (states) =>
      states.map((state) => Uint8Array.from(state)),
    );
  } catch (error) {
    context.signal.throwIfAborted();
    context.partial(`the vCPUs' entries of the kernel were not checked: ${messageOf(error)}`);
    return [];
  }
}

async function saveBaseline(context: Context, linux: Linux, path: string): Promise<void> {
  const { baselineToBytes } = await import('../../linux/index.ts');
  writeNewFile(path, baselineToBytes(await linux.baseline()));
  context.log.note(`the baseline of ${linux.kernel.release} was written to ${path}`);
}

async function checked(
  context: Context,
  linux: Linux,
  machine: Machine,
  options: OptionValues<typeof OPTIONS>,
): Promise<Pick<Rows<Finding>, 'rows' | 'reasons'>> {
  const { progress } = context;
  try {
    const references = await referencesOf(context, options);
    const states = await statesOf(context, machine);
    const onCheck = (what: string): void => progress.say(`checking ${what}`);
    return await linux.check({ ...references, states, onCheck });
  } finally {
    progress.clear();
  }
}

export const check = command({
  name: 'check',
  summary: 'look for signs of manipulation in a Linux guest',
  description: [
    'Code that was changed, system calls, interrupts and functions that lead elsewhere, hidden processes and modules, ' +
      `stolen credentials. Ends with ${EXIT.alert.code} when there is something. No row means that nothing was found, ` +
      'not that nothing is there. Changes of code are seen in full with a reference only: --vmlinux, or --baseline.',
    "Each vCPU leaves the guest for a moment, to see where it enters the kernel. The guest's memory is only read.",
  ],
  arguments: [OPTIONAL_VM],
  options: OPTIONS,
  examples: [
    {
      command: 'kvmi check VM --vmlinux linux-image-6.12.deb --strict',
      does: 'compare the code, and fail when a part is missing',
    },
    { command: 'kvmi check VM --save-baseline well', does: 'remember the guest while it is well …' },
    { command: 'kvmi check VM --baseline well', does: '… and see later what has changed' },
  ],
  columns: FINDING_COLUMNS,
  run: (context, [vm], options) =>
    withLinux(context, vm, options, async function* (linux, machine) {
      if (options.saveBaseline !== undefined) return saveBaseline(context, linux, options.saveBaseline);
      const { rows, reasons } = await checked(context, linux, machine, options);
      if (rows.length > 0) context.exitWith(EXIT.alert.code);
      else context.log.note(`nothing was found in ${linux.kernel.release}`);
      yield* printed(context, FINDING_COLUMNS, { rows, reasons });
    }),
});

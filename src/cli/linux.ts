import type { Awaitable } from '../awaitable.ts';
import { KvmiError } from '../error.ts';
import { didYouMean } from '../input/suggest.ts';
import { integer, type Parse, parseNumber, text } from '../input/values.ts';
import type { Linux, Rows, TypeSource } from '../linux/index.ts';
import type { Machine } from '../machine/index.ts';
import { type ColumnOf, type Row, rowOf } from '../rows/columns.ts';
import { type OptionValues, valueOption } from './command.ts';
import type { Context } from './context.ts';
import { responsiveMemory } from './responsive-memory.ts';
import { withMachine } from './session.ts';

/** What every command that looks into a Linux guest takes. */
export const LINUX_OPTIONS = {
  types: valueOption(
    '--types <FILE>',
    "the kernel's types, if it has no BTF: its vmlinux or Debian package, or an ISF file of Volatility 3",
    text,
  ),
} as const;

export type LinuxOptions = OptionValues<typeof LINUX_OPTIONS>;

export const PID_ABOUT = 'id of a process, as the guest counts, or its name when no other has it';
export const pid = integer('PID', 0, 2 ** 22);

/** What the user calls a process by: its id or its name. */
export const processRef: Parse<number | string> = (given) =>
  parseNumber(given) === undefined ? given : pid(given);

/** The id of a process. Throws a KvmiError with code E_NO_PROCESS when the name is none's or that of several. */
export async function pidOf(linux: Linux, wanted: number | string): Promise<number> {
  if (typeof wanted === 'number') return wanted;
  const { rows } = await linux.processes();
  const found = rows.filter(({ comm }) => comm === wanted);
  if (found.length === 1) return found[0]!.pid;
  const pids = found.map((each) => each.pid).join(', ');
  const hint =
    found.length === 0 ? didYouMean(wanted, [...new Set(rows.map(({ comm }) => comm))]) : undefined;
  throw new KvmiError(
    'E_NO_PROCESS',
    found.length === 0
      ? `the guest has no process called ${wanted}`
      : `the guest has ${found.length} processes called ${wanted}: ${pids}`,
    { hint: hint ?? 'Give the id of one: `kvmi ps VM` lists them.', data: { name: wanted } },
  );
}

/** Opens a VM and finds the Linux in its memory, which is only read. */
export function withLinux(
  context: Context,
  vm: string | undefined,
  options: LinuxOptions,
  rows: (linux: Linux, machine: Machine) => AsyncIterable<Row>,
): AsyncGenerator<Row> {
  // Loaded while the VM is opened, which is waiting for the most part.
  const library = import('../linux/linux.ts');
  return withMachine(context, vm, async function* (machine) {
    const { Linux } = await library;
    yield* rows(await findLinux(Linux, context, machine, options), machine);
  });
}

async function findLinux(
  { find }: Pick<typeof Linux, 'find'>,
  context: Context,
  machine: Machine,
  { types }: LinuxOptions,
): Promise<Linux> {
  const { vmcoreinfo } = machine;
  const given = types === undefined ? undefined : await readTypes(types);
  try {
    const linux = await find(responsiveMemory(machine.memory, context.signal), {
      onProgress: ({ phase, done, total }) => context.progress.show({ what: phase, done, total }),
      ...(given !== undefined && { types: given }),
      ...(vmcoreinfo !== undefined && { vmcoreinfo }),
    });
    context.log.debug(linux.kernel.banner);
    return linux;
  } finally {
    context.progress.clear();
  }
}

async function readTypes(path: string): Promise<TypeSource> {
  const { typesFromFile } = await import('../linux/types-file.ts');
  return typesFromFile(path);
}

/** Asks a Linux guest one question and makes rows of the answer; says what is missing in it. */
export function linuxRows<T extends object>(
  context: Context,
  vm: string | undefined,
  options: LinuxOptions,
  columns: readonly ColumnOf<T>[],
  ask: (linux: Linux) => Awaitable<Rows<T>>,
): AsyncGenerator<Row> {
  return withLinux(context, vm, options, async function* (linux) {
    yield* printed(context, columns, await ask(linux));
  });
}

/** Makes rows of an answer; says what is missing in it. */
export function* printed<T extends object>(
  context: Context,
  columns: readonly ColumnOf<T>[],
  { rows, reasons }: Pick<Rows<T>, 'rows' | 'reasons'>,
): Generator<Row> {
  for (const reason of reasons) context.partial(reason);
  for (const item of rows) yield rowOf(columns, item);
}

/** The answer of a question about one process, which has to be there. */
export async function ofProcess<T>(
  linux: Linux,
  wanted: number | string,
  ask: (pid: number) => Awaitable<Rows<T>>,
): Promise<Rows<T>> {
  const id = await pidOf(linux, wanted);
  const found = await ask(id);
  if (found.rows.length > 0) return found;
  const { rows } = await linux.processes();
  if (rows.some((process) => process.pid === id)) return found;
  throw new KvmiError('E_NO_PROCESS', `the guest has no process ${id}`, {
    hint: '`kvmi ps VM` lists its processes.',
    data: { pid: id },
  });
}

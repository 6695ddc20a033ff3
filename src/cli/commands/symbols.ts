import type { Awaitable } from '../../awaitable.ts';
import { KvmiError, UsageError } from '../../error.ts';
import { type Glob, type Place, placeOrGlob, text } from '../../input/values.ts';
import type { Symbol as KernelSymbol, Linux, ModuleSymbol, Rows } from '../../linux/index.ts';
import { formatHex, type Row } from '../../rows/columns.ts';
import { kernelNames, noSymbol } from '../../targets/symbols.ts';
import { command, optionalArgument, valueOption } from '../command.ts';
import type { Context } from '../context.ts';
import { LINUX_OPTIONS, withLinux } from '../linux.ts';
import { writeNewFile } from '../new-file.ts';
import { VM } from '../targets.ts';

function rowOf(symbol: KernelSymbol | ModuleSymbol, offset = 0): Row {
  const { name, address, type } = symbol;
  return { name, address, type, module: 'module' in symbol ? symbol.module : undefined, offset };
}

/** The symbols of modules; says what is missing among them. */
async function ofModules<T>(context: Context, answer: Awaitable<Rows<T>>): Promise<T[]> {
  const { rows, reasons } = await answer;
  for (const reason of reasons) context.partial(reason);
  return rows;
}

/** The symbol that an address belongs to. */
async function* atAddress(context: Context, linux: Linux, address: bigint): AsyncGenerator<Row> {
  const [inModule] = await ofModules(context, linux.moduleSymbolAt(address));
  const at = inModule ?? linux.symbolAt(address);
  if (at === undefined) {
    throw new KvmiError('E_SYMBOL', `${formatHex(address)} is in no module and outside the kernel's image`, {
      hint: `The image is at ${formatHex(linux.kernel.imageStart)}-${formatHex(linux.kernel.imageEnd - 1n)}.`,
      data: { address },
    });
  }
  yield rowOf(at, at.offset);
}

/** All symbols of that name. */
async function* ofName(context: Context, linux: Linux, name: string, offset: number): AsyncGenerator<Row> {
  const inModules = await ofModules(context, linux.moduleSymbols());
  const all = [...linux.symbols.all(name), ...inModules.filter((each) => each.name === name)];
  if (all.length === 0)
    noSymbol(name, [...kernelNames(linux.symbols), ...inModules.map((each) => each.name)]);
  for (const one of all) yield rowOf(one, offset);
}

/** All symbols whose names match. */
async function* matching(context: Context, linux: Linux, pattern: RegExp): AsyncGenerator<Row> {
  for (const symbol of linux.symbols) if (pattern.test(symbol.name)) yield rowOf(symbol);
  for (const symbol of await ofModules(context, linux.moduleSymbols()))
    if (pattern.test(symbol.name)) yield rowOf(symbol);
}

function found(context: Context, linux: Linux, wanted: Place | Glob): AsyncGenerator<Row> {
  if ('pattern' in wanted) return matching(context, linux, wanted.pattern);
  const { symbol, offset } = wanted;
  return symbol === undefined
    ? atAddress(context, linux, offset)
    : ofName(context, linux, symbol, Number(offset));
}

export const symbols = command({
  name: 'symbols',
  summary: "show symbols of a Linux guest's kernel and modules, by name or by address",
  description: [
    'They are at the addresses of this boot: with KASLR they move. --elf writes those of the kernel to a file that ' +
      'gdb takes (`gdb FILE`).',
  ],
  arguments: [
    VM,
    optionalArgument(
      'PLACE',
      "a name, a pattern of names ('do_sys_*'), or an address in the kernel or a module; all symbols unless given",
      placeOrGlob,
    ),
  ],
  options: {
    ...LINUX_OPTIONS,
    elf: valueOption('--elf <FILE>', 'write those of the kernel to a new ELF file instead', text),
  },
  examples: [
    { command: "kvmi symbols VM 'do_sys_open*'", does: 'where functions are' },
    { command: 'kvmi symbols VM 0xffffffff81000010', does: 'what is at an address' },
    { command: 'kvmi symbols VM --elf kernel.elf', does: 'for gdb' },
  ],
  nothing: 'no symbols',
  columns: [
    { name: 'name', kind: 'text', key: true, about: 'of the symbol' },
    { name: 'address', kind: 'hex', about: 'where it starts' },
    { name: 'type', kind: 'text', about: 'as nm(1) prints it: T and t for code, D and d for data, …' },
    { name: 'module', kind: 'text', about: 'that it is in; empty for the kernel itself' },
    { name: 'offset', kind: 'decimal', about: 'how far behind it the address is that was asked for' },
  ],
  run(context, [vm, wanted], options) {
    const { elf } = options;
    if (elf !== undefined && wanted !== undefined) throw new UsageError('--elf writes all symbols, not one');
    return withLinux(context, vm, options, async function* (linux) {
      if (elf !== undefined) {
        const { symbolsElf } = await import('../../linux/index.ts');
        const modules = await ofModules(context, linux.moduleSymbols());
        writeNewFile(elf, symbolsElf(linux, modules));
        const count = linux.symbols.size + modules.length;
        context.log.note(`${count} symbols of ${linux.kernel.release} written to ${elf}`);
      } else if (wanted !== undefined) {
        yield* found(context, linux, wanted);
      } else {
        for (const symbol of linux.symbols) yield rowOf(symbol);
        for (const symbol of await ofModules(context, linux.moduleSymbols())) yield rowOf(symbol);
      }
    });
  },
});

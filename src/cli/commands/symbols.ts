import type { Awaitable } from '../../awaitable.ts';
import { UsageError } from '../../error.ts';
import { type Place, place, text } from '../../input/values.ts';
import type { Symbol as KernelSymbol, Linux, ModuleSymbol, Rows } from '../../linux/index.ts';
import type { Row } from '../../rows/columns.ts';
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

/** The symbols that `wanted` means: by name, with all that share it, or the one that an address belongs to. */
async function* found(context: Context, linux: Linux, wanted: Place): AsyncGenerator<Row> {
  const { symbols } = linux;
  const { symbol, offset } = wanted;
  if (symbol === undefined) {
    const [inModule] = await ofModules(context, linux.moduleSymbolAt(offset));
    const at = inModule ?? symbols.lookup(offset);
    if (at) yield rowOf(at, at.offset);
    return;
  }
  const modules = await ofModules(context, linux.moduleSymbols());
  const all = [...symbols.all(symbol), ...modules.filter(({ name }) => name === symbol)];
  if (all.length === 0) symbols.require(symbol);
  for (const one of all) yield rowOf(one, Number(offset));
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
      'a name, or an address in the kernel or a module; all symbols unless given',
      place,
    ),
  ],
  options: {
    ...LINUX_OPTIONS,
    elf: valueOption('--elf <FILE>', 'write those of the kernel to a new ELF file instead', text),
  },
  examples: [
    { command: 'kvmi symbols VM schedule', does: 'where a function is' },
    { command: 'kvmi symbols VM 0xffffffff81000010', does: 'what is at an address' },
    { command: 'kvmi symbols VM --elf kernel.elf', does: 'for gdb' },
  ],
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

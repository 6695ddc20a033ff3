import type { Symbol as KernelSymbol, Linux } from '../../linux/index.ts';
import { command, optionalArgument, valueOption } from '../command.ts';
import { UsageError } from '../errors.ts';
import { LINUX_OPTIONS, withLinux } from '../linux.ts';
import { writeNewFile } from '../new-file.ts';
import type { Row } from '../output/columns.ts';
import { VM } from '../targets.ts';
import { type Place, place, text } from '../values.ts';

function rowOf({ name, address, type }: KernelSymbol, offset = 0): Row {
  return { name, address, type, offset };
}

/** The symbols that `wanted` means: by name, with all that share it, or the one that an address belongs to. */
function* found({ symbols }: Linux, { symbol, offset }: Place): Generator<Row> {
  if (symbol === undefined) {
    const at = symbols.lookup(offset);
    if (at) yield rowOf(at, at.offset);
    return;
  }
  symbols.require(symbol);
  for (const one of symbols.all(symbol)) yield rowOf(one, Number(offset));
}

export const symbols = command({
  name: 'symbols',
  summary: "show symbols of a Linux guest's kernel, by name or by address",
  description: [
    'They are at the addresses of this boot: with KASLR they move. --elf writes them to a file that gdb takes ' +
      '(`gdb FILE`).',
  ],
  arguments: [
    VM,
    optionalArgument('PLACE', 'a name, or an address in the kernel; all symbols unless given', place),
  ],
  options: {
    ...LINUX_OPTIONS,
    elf: valueOption('--elf <FILE>', 'write all of them to a new ELF file instead', text),
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
    { name: 'offset', kind: 'decimal', about: 'how far behind it the address is that was asked for' },
  ],
  run(context, [vm, wanted], options) {
    const { elf } = options;
    if (elf !== undefined && wanted !== undefined) throw new UsageError('--elf writes all symbols, not one');
    return withLinux(context, vm, options, async function* (linux) {
      if (elf !== undefined) {
        const { symbolsElf } = await import('../../linux/index.ts');
        writeNewFile(elf, symbolsElf(linux));
        context.log.note(`${linux.symbols.size} symbols of ${linux.kernel.release} written to ${elf}`);
      } else if (wanted !== undefined) {
        yield* found(linux, wanted);
      } else {
        for (const symbol of linux.symbols) yield rowOf(symbol);
      }
    });
  },
});

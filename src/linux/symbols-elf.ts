import type { Linux } from './linux.ts';
import type { ModuleSymbol } from './module-symbols.ts';
import type { Symbol as KernelSymbol } from './symbols.ts';

/*
 * An ELF file that has nothing but a symbol table, for debuggers: `gdb kernel.elf`, or `add-symbol-file`. Symbols are
 * at their run-time addresses, so that it fits this boot of this guest.
 */

const HEADER = 64;
const SECTION = 64;
const SYMBOL = 24;
const ET_EXEC = 2;
const EM_X86_64 = 62;
const SHT = { symtab: 2, strtab: 3, nobits: 8 } as const;
const SHF = { allocExec: 6, allocWrite: 3 } as const;
const SHN_ABS = 0xfff1;
const STT = { object: 1, function: 2 } as const;
/** Symbols of per-CPU variables are offsets, which start at zero. */
const MAX_PER_CPU = 16n << 20n;
/** Where the kernel and its modules are mapped (Documentation/arch/x86/x86_64/mm.rst). */
const KERNEL_MAP = 0xffff_ffff_8000_0000n;

interface Section {
  readonly name: string;
  readonly type: number;
  readonly flags?: number;
  readonly address?: bigint;
  readonly content?: Buffer;
  /** Of one that has no content. */
  readonly size?: bigint;
  readonly link?: number;
  readonly info?: number;
  readonly entry?: number;
}

/** A range of addresses that symbols belong to: debuggers look up addresses in sections only. */
interface Area {
  readonly name: string;
  readonly flags: number;
  readonly start: bigint;
  readonly end: bigint;
}

/** The symbols of the kernel, and of modules if given, at their run-time addresses as an ELF file, for gdb. */
export function symbolsElf(linux: Linux, modules: readonly ModuleSymbol[] = []): Uint8Array {
  const kernel = [...linux.symbols];
  const inModules = modules
    .filter(({ address }) => address >= KERNEL_MAP)
    .sort((a, b) => (a.address < b.address ? -1 : a.address > b.address ? 1 : 0));
  const areas = areasOf(linux, kernel, inModules);
  const { table, strings } = symbolTable([kernel, inModules], areas);
  const names = areas.length + 3;
  return elfFile(
    [
      ...areas.map(({ start, end, ...area }) => ({
        ...area,
        type: SHT.nobits,
        address: start,
        size: end - start,
      })),
      // `info` is the first symbol that is not local; they are not in that order, and debuggers do not mind.
      { name: '.symtab', type: SHT.symtab, content: table, link: areas.length + 2, info: 1, entry: SYMBOL },
      { name: '.strtab', type: SHT.strtab, content: strings },
    ],
    names,
  );
}

function areasOf(
  { kernel }: Linux,
  symbols: readonly KernelSymbol[],
  inModules: readonly ModuleSymbol[],
): Area[] {
  const areas: Area[] = [
    { name: '.text', flags: SHF.allocExec, start: kernel.imageStart, end: kernel.imageEnd },
  ];
  const perCpu = symbols.filter(({ type, address }) => type === 'A' && address < MAX_PER_CPU).at(-1);
  // One byte more, so that the last symbol belongs to it.
  if (perCpu !== undefined)
    areas.push({ name: '.data..percpu', flags: SHF.allocWrite, start: 0n, end: perCpu.address + 1n });
  const [first, last] = [inModules[0], inModules.at(-1)];
  if (first !== undefined && last !== undefined)
    areas.push({ name: '.modules', flags: SHF.allocExec, start: first.address, end: last.address + 1n });
  return areas;
}

/** `lists`: each sorted by address. */
function symbolTable(
  lists: readonly (readonly KernelSymbol[])[],
  areas: readonly Area[],
): { readonly table: Buffer; readonly strings: Buffer } {
  const count = lists.reduce((sum, { length }) => sum + length, 0);
  const table = Buffer.alloc((count + 1) * SYMBOL);
  const strings = Buffer.from(`\0${lists.flatMap((list) => list.map(({ name }) => `${name}\0`)).join('')}`);
  let at = 0;
  let string = 1;
  for (const list of lists) {
    const next = nextAddresses(list);
    for (const [i, { name, address, type }] of list.entries()) {
      at += SYMBOL;
      const area = areas.findIndex(({ start, end }) => address >= start && address < end);
      // The kernel keeps no sizes: up to the next symbol in the area.
      const end = next[i];
      const size = area >= 0 && end !== undefined && end < areas[area]!.end ? end - address : 0n;
      const isGlobal = type === type.toUpperCase();
      const kind = type.toLowerCase() === 't' ? STT.function : STT.object;
      table.writeUInt32LE(string, at);
      table[at + 4] = (Number(isGlobal) << 4) | kind;
      table.writeUInt16LE(area < 0 ? SHN_ABS : area + 1, at + 6);
      table.writeBigUInt64LE(address, at + 8);
      table.writeBigUInt64LE(size, at + 16);
      string += Buffer.byteLength(name) + 1;
    }
  }
  return { table, strings };
}

/** Of each symbol the address of the next one that is not at the same place; none behind the last. */
function nextAddresses(list: readonly KernelSymbol[]): (bigint | undefined)[] {
  const next = new Array<bigint | undefined>(list.length);
  for (let i = list.length - 2; i >= 0; i--)
    next[i] = list[i + 1]!.address > list[i]!.address ? list[i + 1]!.address : next[i + 1];
  return next;
}

/** The sections behind the empty one, and `names`, the index of the one with their names, which is added. */
function elfFile(sections: readonly Section[], names: number): Buffer {
  const strings = `\0${[...sections.map(({ name }) => name), '.shstrtab'].join('\0')}\0`;
  const all = [...sections, { name: '.shstrtab', type: SHT.strtab, content: Buffer.from(strings, 'latin1') }];
  const contents = all.map(({ content }) => content ?? Buffer.alloc(0));
  const headers = Buffer.alloc((all.length + 1) * SECTION);
  let offset = HEADER + headers.length;
  let name = 1;
  all.forEach((section, i) => {
    writeSection(headers, (i + 1) * SECTION, section, name, offset);
    name += section.name.length + 1;
    offset += contents[i]!.length;
  });
  const header = Buffer.alloc(HEADER);
  header.write('\x7fELF\x02\x01\x01', 0, 'latin1');
  header.writeUInt16LE(ET_EXEC, 16);
  header.writeUInt16LE(EM_X86_64, 18);
  header.writeUInt32LE(1, 20);
  header.writeBigUInt64LE(BigInt(HEADER), 40);
  header.writeUInt16LE(HEADER, 52);
  header.writeUInt16LE(SECTION, 58);
  header.writeUInt16LE(all.length + 1, 60);
  header.writeUInt16LE(names, 62);
  return Buffer.concat([header, headers, ...contents]);
}

function writeSection(file: Buffer, at: number, section: Section, name: number, offset: number): void {
  file.writeUInt32LE(name, at);
  file.writeUInt32LE(section.type, at + 4);
  file.writeBigUInt64LE(BigInt(section.flags ?? 0), at + 8);
  file.writeBigUInt64LE(section.address ?? 0n, at + 16);
  file.writeBigUInt64LE(BigInt(offset), at + 24);
  file.writeBigUInt64LE(section.size ?? BigInt(section.content?.length ?? 0), at + 32);
  file.writeUInt32LE(section.link ?? 0, at + 40);
  file.writeUInt32LE(section.info ?? 0, at + 44);
  file.writeBigUInt64LE(1n, at + 48);
  file.writeBigUInt64LE(BigInt(section.entry ?? 0), at + 56);
}

import type { Linux } from './linux.ts';

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
/** Indexes of the sections that symbols are in. */
const SECTION_INDEX = { text: 1, perCpu: 5 } as const;
const SECTIONS = 6;
/** Symbols of per-CPU variables are offsets, which start at zero. */
const MAX_PER_CPU = 16n << 20n;
const STT = { object: 1, function: 2 } as const;
const SECTION_NAMES = '\0.text\0.symtab\0.strtab\0.shstrtab\0.data..percpu\0';

/** The kernel's symbols at their run-time addresses as an ELF file, for gdb. */
export function symbolsElf({ symbols, kernel }: Linux): Uint8Array {
  const { text, starts, types, addresses } = symbols.arrays;
  const count = symbols.size;
  const table = Buffer.alloc((count + 1) * SYMBOL);
  const strings = Buffer.alloc(1 + text.length + count);
  let used = 1;
  let perCpuSize = 0n;
  for (let i = 0; i < count; i++) {
    const at = (i + 1) * SYMBOL;
    const type = String.fromCharCode(types[i]!);
    const address = addresses[i]!;
    const inImage = address >= kernel.imageStart && address < kernel.imageEnd;
    const isPerCpu = type === 'A' && address < MAX_PER_CPU;
    // One byte more, so that the symbol of its end belongs to it.
    if (isPerCpu && address >= perCpuSize) perCpuSize = address + 1n;
    const section = inImage ? SECTION_INDEX.text : isPerCpu ? SECTION_INDEX.perCpu : SHN_ABS;
    const binding = type === type.toUpperCase() ? 1 : 0;
    table.writeUInt32LE(used, at);
    table[at + 4] = (binding << 4) | (type.toLowerCase() === 't' ? STT.function : STT.object);
    table.writeUInt16LE(section, at + 6);
    table.writeBigUInt64LE(address, at + 8);
    table.writeBigUInt64LE(section !== SHN_ABS ? sizeOf(addresses, i) : 0n, at + 16);
    strings.set(text.subarray(starts[i], starts[i + 1]), used);
    used += starts[i + 1]! - starts[i]! + 1;
  }
  const names = Buffer.from(SECTION_NAMES, 'latin1');
  const symtabAt = HEADER;
  const stringsAt = symtabAt + table.length;
  const namesAt = stringsAt + strings.length;
  const sectionsAt = Math.ceil((namesAt + names.length) / 8) * 8;
  const file = Buffer.alloc(sectionsAt + SECTIONS * SECTION);
  writeHeader(file, sectionsAt);
  file.set(table, symtabAt);
  file.set(strings, stringsAt);
  file.set(names, namesAt);
  const size = Number(kernel.imageEnd - kernel.imageStart);
  const image = {
    name: 1,
    type: SHT.nobits,
    flags: SHF.allocExec,
    address: kernel.imageStart,
    offset: HEADER,
    size,
  };
  writeSection(file, sectionsAt + SECTION, image);
  writeSection(file, sectionsAt + 2 * SECTION, {
    name: 7,
    type: SHT.symtab,
    offset: symtabAt,
    size: table.length,
    link: 3,
    // The first symbol that is not local; they are not in that order, and debuggers do not mind.
    info: 1,
    entry: SYMBOL,
  });
  writeSection(file, sectionsAt + 3 * SECTION, {
    name: 15,
    type: SHT.strtab,
    offset: stringsAt,
    size: strings.length,
  });
  writeSection(file, sectionsAt + 4 * SECTION, {
    name: 23,
    type: SHT.strtab,
    offset: namesAt,
    size: names.length,
  });
  writeSection(file, sectionsAt + SECTION_INDEX.perCpu * SECTION, {
    name: 33,
    type: SHT.nobits,
    flags: SHF.allocWrite,
    offset: HEADER,
    size: Number(perCpuSize),
  });
  return file;
}

/** Up to the next symbol: kallsyms has no sizes. */
function sizeOf(addresses: BigUint64Array, index: number): bigint {
  for (let next = index + 1; next < addresses.length; next++)
    if (addresses[next]! > addresses[index]!) return addresses[next]! - addresses[index]!;
  return 0n;
}

function writeHeader(file: Buffer, sectionsAt: number): void {
  file.write('\x7fELF\x02\x01\x01', 0, 'latin1');
  file.writeUInt16LE(ET_EXEC, 16);
  file.writeUInt16LE(EM_X86_64, 18);
  file.writeUInt32LE(1, 20);
  file.writeBigUInt64LE(BigInt(sectionsAt), 40);
  file.writeUInt16LE(HEADER, 52);
  file.writeUInt16LE(SECTION, 58);
  file.writeUInt16LE(SECTIONS, 60);
  file.writeUInt16LE(4, 62);
}

interface SectionFields {
  readonly name: number;
  readonly type: number;
  readonly flags?: number;
  readonly address?: bigint;
  readonly offset: number;
  readonly size: number;
  readonly link?: number;
  readonly info?: number;
  readonly entry?: number;
}

function writeSection(file: Buffer, at: number, section: SectionFields): void {
  file.writeUInt32LE(section.name, at);
  file.writeUInt32LE(section.type, at + 4);
  file.writeBigUInt64LE(BigInt(section.flags ?? 0), at + 8);
  file.writeBigUInt64LE(section.address ?? 0n, at + 16);
  file.writeBigUInt64LE(BigInt(section.offset), at + 24);
  file.writeBigUInt64LE(BigInt(section.size), at + 32);
  file.writeUInt32LE(section.link ?? 0, at + 40);
  file.writeUInt32LE(section.info ?? 0, at + 44);
  file.writeBigUInt64LE(1n, at + 48);
  file.writeBigUInt64LE(BigInt(section.entry ?? 0), at + 56);
}

import { KvmiError } from '../../error.ts';
import { PAGE_SIZE } from '../../machine/index.ts';
import { type DumpContents, type DumpFormat, damaged, memoryIn } from './contents.ts';
import { readElf } from './elf.ts';
import { ELF_MAGIC } from './elf-format.ts';
import { FileSource, readPart, type Source } from './file.ts';
import { FLATTENED_MAGIC, Flattened } from './flattened.ts';
import { KDUMP_MAGIC, readKdump } from './kdump.ts';
import { LIME_MAGIC, readLime } from './lime.ts';
import { SnapshotMachine } from './machine.ts';
import { unpacked } from './packed.ts';

export interface OpenOptions {
  /** Told from the first bytes of the file unless given. */
  readonly format?: DumpFormat;
}

/**
 * Opens a memory dump as a machine that has stopped for good. Throws a KvmiError with code E_DUMP_FILE when the file
 * cannot be read, E_DUMP_DAMAGED when it is not what it says it is, E_DUMP_COMPRESSION when it is compressed in a way
 * that cannot be read.
 */
export function openSnapshot(path: string, options: OpenOptions = {}): SnapshotMachine {
  const file = new FileSource(path);
  try {
    return new SnapshotMachine(file, readContents(unpacked(file, path), options.format));
  } catch (error) {
    file.close();
    throw error;
  }
}

const READERS: Readonly<Record<DumpFormat, (source: Source) => DumpContents>> = {
  raw: readRaw,
  elf: readElf,
  lime: readLime,
  kdump: (source) => readKdump(isFlattened(source) ? new Flattened(source) : source),
};

function readContents(source: Source, format: DumpFormat | undefined): DumpContents {
  const contents = READERS[format ?? detectFormat(source)](source);
  if (contents.regions.length === 0) throw damaged('it holds no memory');
  return contents;
}

function isFlattened(source: Source): boolean {
  return readPart(source, 0, FLATTENED_MAGIC.length)?.equals(FLATTENED_MAGIC) ?? false;
}

/** By its first bytes; what starts with none of the known signatures is taken for raw. */
export function detectFormat(source: Source): DumpFormat {
  const start = readPart(source, 0, 16);
  if (start === undefined) return 'raw';
  if (start.subarray(0, ELF_MAGIC.length).equals(ELF_MAGIC)) return 'elf';
  if (start.readUInt32LE(0) === LIME_MAGIC) return 'lime';
  if (start.subarray(0, KDUMP_MAGIC.length).equals(KDUMP_MAGIC) || start.equals(FLATTENED_MAGIC))
    return 'kdump';
  return 'raw';
}

/** Guest memory from address 0 on. */
function readRaw(source: Source): DumpContents {
  if (source.size < PAGE_SIZE) {
    throw new KvmiError('E_DUMP_DAMAGED', `a memory dump of ${source.size} bytes holds nothing`, {
      hint: 'Check that this is the right file.',
    });
  }
  const segment = { gpa: 0, size: source.size, offset: 0, fileSize: source.size };
  return { format: 'raw', ...memoryIn(source, [segment]), states: [], vmcoreinfo: undefined };
}

import { KvmiError } from '../../error.ts';
import { readPart, type Source } from './file.ts';
import { isSeekable, SeekableZstd, ZSTD_MAGIC } from './seekable.ts';

/** How files start that were compressed as a whole, and what unpacks them. */
const PACKERS: readonly (readonly [magic: Buffer, command: string])[] = [
  [ZSTD_MAGIC, 'zstd -d'],
  [Buffer.from([0x1f, 0x8b, 0x08]), 'gunzip'],
  [Buffer.from([0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00]), 'unxz'],
  [Buffer.from('BZh', 'latin1'), 'bunzip2'],
  [Buffer.from([0x04, 0x22, 0x4d, 0x18]), 'lz4 -d'],
];

/**
 * The dump in a file, which may be packed so that it can be read at any place. Throws a KvmiError with code
 * E_DUMP_COMPRESSION when it is packed in another way.
 */
export function unpacked(file: Source, path: string): Source {
  const start = readPart(file, 0, 6);
  const packer = start && PACKERS.find(([magic]) => start.subarray(0, magic.length).equals(magic));
  if (packer === undefined) return file;
  const [magic, command] = packer;
  if (magic === ZSTD_MAGIC && isSeekable(file)) return new SeekableZstd(file);
  throw new KvmiError(
    'E_DUMP_COMPRESSION',
    `${path} is compressed as a whole, or cut off, and cannot be read at any place`,
    {
      hint: `Unpack it first: \`${command}\`. What \`kvmi dump --compress zstd\` writes can be read as it is.`,
    },
  );
}

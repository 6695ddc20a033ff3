import { setImmediate } from 'node:timers/promises';
import { crc32 } from 'node:zlib';
import { KvmiError } from '../../error.ts';
import { manifestPath, readManifest } from './dump-manifest.ts';
import { isZeros } from './dump-output.ts';
import { chunksOf } from './dump-writer.ts';
import { FileSource } from './file.ts';
import { unpacked } from './packed.ts';

/** Where a dump differs from its checksums. */
export interface DumpDamage {
  readonly gpa: number;
  readonly size: number;
}

export interface VerifyOptions {
  /** Bytes of guest memory that were looked at, of all. */
  readonly onProgress?: (progress: { readonly done: number; readonly total: number }) => void;
  readonly signal?: AbortSignal;
}

/** Bytes that one checksum may be of: what stands in a file beside the dump is not believed. */
const MAX_CHUNK = 64 << 20;

/**
 * Compares a dump with the checksums beside it. Throws a KvmiError with code E_DUMP_FILE when there are none, or what
 * `openSnapshot` throws.
 */
export async function verifyDump(file: string, options: VerifyOptions = {}): Promise<DumpDamage[]> {
  const manifest = readManifest(file);
  if (manifest === undefined || manifest.chunkSize > MAX_CHUNK)
    throw new KvmiError('E_DUMP_FILE', `${manifestPath(file)} cannot be read`, {
      hint: 'Only dumps that kvmi has made have checksums.',
    });
  const { regions, chunkSize, checksums } = manifest;
  const total = regions.reduce((sum, { size }) => sum + size, 0);
  const packed = new FileSource(file);
  try {
    const source = unpacked(packed, file);
    const buffer = Buffer.alloc(chunkSize);
    const damage: DumpDamage[] = [];
    let index = 0;
    let done = 0;
    for (const { region, at, size } of chunksOf(regions, chunkSize)) {
      await setImmediate();
      options.signal?.throwIfAborted();
      const bytes = buffer.subarray(0, size);
      const isThere = source.read(region.offset + at, bytes);
      const expected = checksums[index++];
      if (!isThere || (isZeros(bytes) ? 0 : crc32(bytes)) !== expected)
        damage.push({ gpa: region.gpa + at, size });
      done += size;
      options.onProgress?.({ done, total });
    }
    return damage;
  } finally {
    packed.close();
  }
}

import {
  closeSync,
  existsSync,
  fsyncSync,
  ftruncateSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { crc32 } from 'node:zlib';
import { KvmiError, messageOf } from '../../error.ts';
import { type MemoryRegion, PAGE_SIZE, type PhysicalMemory } from '../../machine/index.ts';
import { elfHeader } from './elf.ts';
import { FileSource } from './file.ts';
import { LIME_HEADER, limeHeader } from './lime.ts';

export interface DumpOptions {
  readonly format: 'elf' | 'raw' | 'lime';
  /** The 536-byte state of each vCPU, for an ELF dump. */
  readonly states?: readonly Uint8Array[];
  readonly onProgress?: (progress: DumpProgress) => void;
  /** Goes on with a dump of the same file that was interrupted; the default. False starts anew. */
  readonly resume?: boolean;
  /** Ends the dump at the next chunk; what was written stays and can be gone on with. */
  readonly signal?: AbortSignal;
}

export interface DumpProgress {
  /** Bytes of guest memory that were looked at, of all. */
  readonly done: number;
  readonly total: number;
  /** Bytes that were written; the others are zeros and take no room in the file. */
  readonly written: number;
}

export interface DumpResult {
  readonly file: string;
  /** Of the file, with the zeros that take no room. */
  readonly size: number;
  readonly written: number;
  /** Pages that could not be read and are zeros in the file. */
  readonly unreadable: number;
}

/** What stands beside a dump, in `FILE.checksums`: to verify it, and to go on with it. */
export interface DumpManifest {
  readonly version: 1;
  readonly format: DumpOptions['format'];
  readonly chunkSize: number;
  readonly regions: readonly { readonly gpa: number; readonly size: number }[];
  /** CRC-32 of each chunk of guest memory in turn; 0 for one of zeros, which is not written. */
  readonly checksums: number[];
  /** Pages that could not be read. */
  unreadable: number;
  complete: boolean;
}

const CHUNK = 4 << 20;
/** How many bytes are written between two records of how far the dump has come. */
const RECORD_EVERY = 256 << 20;

export function manifestPath(file: string): string {
  return `${file}.checksums`;
}

/** Where each region goes in the file, and what else is in it. */
interface FileLayout {
  readonly offsets: readonly number[];
  readonly headers: readonly { readonly offset: number; readonly bytes: Uint8Array }[];
  readonly size: number;
}

const LAYOUTS: Readonly<
  Record<
    DumpOptions['format'],
    (regions: readonly MemoryRegion[], states: readonly Uint8Array[]) => FileLayout
  >
> = {
  raw: (regions) => ({
    offsets: regions.map(({ gpa }) => gpa),
    headers: [],
    size: Math.max(0, ...regions.map(({ gpa, size }) => gpa + size)),
  }),
  elf: (regions, states) => {
    const { header, offsets } = elfHeader(regions, states);
    const size = regions.reduce((sum, region) => sum + region.size, header.length);
    return { offsets, headers: [{ offset: 0, bytes: header }], size };
  },
  lime: (regions) => {
    const offsets: number[] = [];
    const headers: { offset: number; bytes: Uint8Array }[] = [];
    let offset = 0;
    for (const { gpa, size } of regions) {
      headers.push({ offset, bytes: limeHeader(gpa, size) });
      offsets.push(offset + LIME_HEADER);
      offset += LIME_HEADER + size;
    }
    return { offsets, headers, size: offset };
  },
};

/**
 * Writes a machine's memory to a file that only its owner may read. Pages of zeros take no room in it. While the machine runs the
 * dump is no picture of one moment; pause it for one.
 *
 * A dump that was interrupted is gone on with where it was, if the regions are still the same. Beside the file stands
 * `FILE.checksums`, with which {@link verifyDump} finds damage. Throws a KvmiError with code E_DUMP_FILE when the file
 * cannot be written, E_ABORTED when `signal` ended it.
 */
export async function dumpMemory(
  machine: { readonly memory: PhysicalMemory },
  file: string,
  options: DumpOptions,
): Promise<DumpResult> {
  const { memory } = machine;
  const regions = memory.regions.map(({ gpa, size, readonly }) => ({ gpa, size, readonly }));
  const layout = LAYOUTS[options.format](regions, options.states ?? []);
  const partial = `${file}.partial`;
  const manifest = resumable(file, partial, regions, options) ?? freshManifest(regions, options.format);
  const fd = openOutput(partial, manifest.checksums.length === 0);
  try {
    ftruncateSync(fd, layout.size);
    for (const { offset, bytes } of layout.headers) writeAll(fd, bytes, offset);
    const writer = new DumpWriter(memory, fd, manifest, layout, regions, partial);
    const written = await writer.run(options);
    fsyncSync(fd);
    manifest.complete = true;
    saveManifest(file, manifest);
    renameSync(partial, file);
    rmSync(manifestPath(partial), { force: true });
    return { file, size: layout.size, written, unreadable: manifest.unreadable };
  } catch (error) {
    saveManifest(partial, manifest);
    if (error instanceof KvmiError) throw error;
    throw fileError(file, error);
  } finally {
    closeSync(fd);
  }
}

function fileError(file: string, cause: unknown): KvmiError {
  return new KvmiError('E_DUMP_FILE', `${file}: ${messageOf(cause)}`, {
    hint: 'Check that the directory may be written to and that there is room. Run it again to go on.',
    cause,
  });
}

function freshManifest(regions: readonly MemoryRegion[], format: DumpOptions['format']): DumpManifest {
  return {
    version: 1,
    format,
    chunkSize: CHUNK,
    regions: regions.map(({ gpa, size }) => ({ gpa, size })),
    checksums: [],
    unreadable: 0,
    complete: false,
  };
}

function resumable(
  file: string,
  partial: string,
  regions: readonly MemoryRegion[],
  { format, resume = true }: DumpOptions,
): DumpManifest | undefined {
  if (existsSync(file)) {
    throw new KvmiError('E_DUMP_FILE', `${file} exists`, {
      hint: 'Choose another name, or remove it first.',
    });
  }
  const manifest = resume && existsSync(partial) ? readManifest(partial) : undefined;
  const wanted = freshManifest(regions, format);
  const isSame =
    manifest?.format === format &&
    manifest.chunkSize === CHUNK &&
    JSON.stringify(manifest.regions) === JSON.stringify(wanted.regions);
  return isSame ? manifest : undefined;
}

function openOutput(path: string, fresh: boolean): number {
  try {
    if (fresh) rmSync(path, { force: true });
    return openSync(path, fresh ? 'wx' : 'r+', 0o600);
  } catch (error) {
    throw fileError(path, error);
  }
}

function saveManifest(file: string, manifest: DumpManifest): void {
  const path = manifestPath(file);
  rmSync(path, { force: true });
  writeFileSync(path, JSON.stringify(manifest), { mode: 0o600, flag: 'wx' });
}

function readManifest(file: string): DumpManifest | undefined {
  try {
    const manifest = JSON.parse(readFileSync(manifestPath(file), 'utf8')) as DumpManifest;
    const isWhole =
      manifest.version === 1 && Array.isArray(manifest.checksums) && Array.isArray(manifest.regions);
    return isWhole ? manifest : undefined;
  } catch {
    return undefined;
  }
}

function writeAll(fd: number, bytes: Uint8Array, offset: number): void {
  for (let done = 0; done < bytes.length; )
    done += writeSync(fd, bytes, done, bytes.length - done, offset + done);
}

/** Copies memory chunk by chunk, in the order of the manifest. */
class DumpWriter {
  readonly #memory: PhysicalMemory;
  readonly #fd: number;
  readonly #manifest: DumpManifest;
  readonly #layout: FileLayout;
  readonly #regions: readonly MemoryRegion[];
  readonly #partial: string;
  readonly #chunk = Buffer.allocUnsafeSlow(CHUNK);
  #written = 0;

  constructor(
    memory: PhysicalMemory,
    fd: number,
    manifest: DumpManifest,
    layout: FileLayout,
    regions: readonly MemoryRegion[],
    partial: string,
  ) {
    this.#memory = memory;
    this.#fd = fd;
    this.#manifest = manifest;
    this.#layout = layout;
    this.#regions = regions;
    this.#partial = partial;
  }

  async run({ onProgress, signal }: DumpOptions): Promise<number> {
    const { checksums } = this.#manifest;
    const total = this.#regions.reduce((sum, { size }) => sum + size, 0);
    let done = 0;
    let index = 0;
    let recorded = 0;
    for (const [number, region] of this.#regions.entries()) {
      for (let at = 0; at < region.size; at += CHUNK, index++) {
        const size = Math.min(CHUNK, region.size - at);
        done += size;
        if (index < checksums.length) continue;
        if (signal?.aborted) throw aborted();
        checksums.push(await this.#copy(region.gpa + at, size, this.#layout.offsets[number]! + at));
        onProgress?.({ done, total, written: this.#written });
        if (this.#written - recorded < RECORD_EVERY) continue;
        recorded = this.#written;
        saveManifest(this.#partial, this.#manifest);
      }
    }
    return this.#written;
  }

  /** Answers the checksum. */
  async #copy(gpa: number, size: number, offset: number): Promise<number> {
    const next = this.#memory.nextData === undefined ? gpa : this.#memory.nextData(gpa);
    if (next === undefined || next >= gpa + size) return 0;
    const bytes = this.#chunk.subarray(0, size);
    if (!(await this.#memory.read(gpa, bytes))) await this.#readPages(gpa, bytes);
    return this.#writeData(bytes, offset) ? crc32(bytes) : 0;
  }

  /** Page by page, with zeros for those that cannot be read. */
  async #readPages(gpa: number, bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length; at += PAGE_SIZE) {
      const page = bytes.subarray(at, at + PAGE_SIZE);
      if (await this.#memory.read(gpa + at, page)) continue;
      page.fill(0);
      this.#manifest.unreadable++;
    }
  }

  /** Writes what is not zeros, in runs of whole pages. False when there is nothing. */
  #writeData(bytes: Buffer, offset: number): boolean {
    let start = -1;
    let hasData = false;
    for (let at = 0; at <= bytes.length; at += PAGE_SIZE) {
      const isData = at < bytes.length && !isZeroPage(bytes, at);
      if (isData && start < 0) start = at;
      if (isData || start < 0) continue;
      writeAll(this.#fd, bytes.subarray(start, at), offset + start);
      this.#written += at - start;
      hasData = true;
      start = -1;
    }
    return hasData;
  }
}

const ZEROS = Buffer.alloc(PAGE_SIZE);

function isZeroPage(bytes: Buffer, at: number): boolean {
  // Most pages differ at once; the call costs more than a look.
  if (bytes[at] !== 0 || bytes[at + 2048] !== 0) return false;
  return bytes.compare(ZEROS, 0, PAGE_SIZE, at, Math.min(at + PAGE_SIZE, bytes.length)) === 0;
}

function aborted(): KvmiError {
  return new KvmiError('E_ABORTED', 'the dump was interrupted', {
    hint: 'Run it again to go on where it was.',
  });
}

/** Where a dump differs from its checksums. */
export interface DumpDamage {
  readonly gpa: number;
  readonly size: number;
}

/** Compares a dump with the checksums beside it. Throws a KvmiError with code E_DUMP_FILE when there are none. */
export function verifyDump(file: string): DumpDamage[] {
  const manifest = readManifest(file);
  if (manifest === undefined)
    throw new KvmiError('E_DUMP_FILE', `${manifestPath(file)} cannot be read`, {
      hint: 'Only dumps that kvmi has made have checksums.',
    });
  const source = new FileSource(file);
  const damage: DumpDamage[] = [];
  const regions = manifest.regions.map((region) => ({ ...region, readonly: false }));
  const states = manifest.format === 'elf' ? headerSize(source) : undefined;
  const { offsets } = LAYOUTS[manifest.format](regions, []);
  let index = 0;
  for (const [number, { gpa, size }] of manifest.regions.entries()) {
    for (let at = 0; at < size; at += manifest.chunkSize, index++) {
      const bytes = Buffer.alloc(Math.min(manifest.chunkSize, size - at));
      const start = states === undefined ? offsets[number]! : offsets[number]! - offsets[0]! + states;
      const isThere = source.read(start + at, bytes);
      const checksum = bytes.every((byte) => byte === 0) ? 0 : crc32(bytes);
      if (!isThere || checksum !== manifest.checksums[index])
        damage.push({ gpa: gpa + at, size: bytes.length });
    }
  }
  source.close();
  return damage;
}

/** Where memory starts in an ELF dump: at the first segment that is loaded. */
function headerSize(source: FileSource): number {
  const at = Buffer.alloc(8);
  return source.read(64 + 56 + 8, at) ? Number(at.readBigUInt64LE(0)) : 0;
}

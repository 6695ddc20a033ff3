import {
  close as closeWithCallback,
  existsSync,
  fdatasync,
  constants as fsConstants,
  fstatSync,
  fsync,
  openSync,
  renameSync,
  rmSync,
} from 'node:fs';
import { promisify } from 'node:util';
import { KvmiError, messageOf } from '../../error.ts';
import type { PhysicalMemory } from '../../machine/index.ts';
import { type DumpLayout, layoutOf, type WrittenFormat } from './dump-layout.ts';
import {
  type DumpIdentity,
  DumpJournal,
  type DumpState,
  manifestPath,
  readManifest,
  writeManifest,
} from './dump-manifest.ts';
import { type DumpOutput, PlainOutput, ZstdOutput } from './dump-output.ts';
import { CHUNK, type DumpProgress, DumpWriter } from './dump-writer.ts';
import { loadZstd } from './zstd.ts';

const closeFile = promisify(closeWithCallback);
const syncFile = promisify(fsync);
const syncData = promisify(fdatasync);

export interface DumpOptions {
  readonly format: WrittenFormat;
  /**
   * Packs the file, so that it can still be read at any place (the seekable format of Zstandard). `zstd -d` unpacks it.
   */
  readonly compression?: 'zstd';
  /** The 536-byte state of each vCPU, for an ELF dump. */
  readonly states?: readonly Uint8Array[];
  /** What a Linux kernel says about itself, for an ELF dump: crash and drgn ask for it. */
  readonly vmcoreinfo?: string;
  readonly onProgress?: (progress: DumpProgress) => void;
  /** Called when nothing more is read from memory; the file is not complete yet. The machine may run on. */
  readonly onCopied?: () => void;
  /** Goes on with a dump of the same machine to that file that was interrupted; the default. False starts anew. */
  readonly resume?: boolean;
  /** Ends the dump at the next chunk; what was written stays and can be gone on with. */
  readonly signal?: AbortSignal;
}

export interface DumpResult {
  readonly file: string;
  /** Of the file, with the zeros that take no room. */
  readonly size: number;
  /** Bytes that were written to it. */
  readonly written: number;
  /** Pages that could not be read and are zeros in the file. */
  readonly unreadable: number;
  /** Whether it went on with a dump that was interrupted: memory is of two moments then. */
  readonly resumed: boolean;
}

/** What is dumped. Name and UUID keep the dump of one machine from being gone on with from another one. */
export interface DumpSubject {
  readonly memory: PhysicalMemory;
  readonly name?: string;
  readonly uuid?: Uint8Array;
}

/** How many bytes are written between two records of how far the dump has come. */
const RECORD_EVERY = 64 << 20;

/** What a dump is called until it is whole. */
export function partialPath(file: string): string {
  return `${file}.partial`;
}

/**
 * Writes a machine's memory to a file that only its owner may read. Zeros take no room in it. While the machine runs the
 * dump is no picture of one moment; pause it for one.
 *
 * The file is called `FILE.partial` until it is whole. A dump that was interrupted, in whatever way, is gone on with
 * where it was. Beside the file stands `FILE.checksums`, with which {@link verifyDump} finds damage. Throws a KvmiError
 * with code E_OUTPUT_FILE when the file cannot be written, is there already, is begun with something else or is being
 * written by another process, E_DUMP_COMPRESSION when it cannot be packed, E_ABORTED when `signal` ended it.
 */
export async function dumpMemory(
  machine: DumpSubject,
  file: string,
  options: DumpOptions,
): Promise<DumpResult> {
  const { memory } = machine;
  if (options.compression !== undefined) loadZstd();
  const { states = [], vmcoreinfo } = options;
  const layout = layoutOf(options.format, memory.regions, { states, vmcoreinfo });
  const identity = identityOf(machine, layout, options);
  checkFree(file);
  const begun = new BegunDump(file, identity, options.resume ?? true);
  try {
    const output = begun.output(layout);
    const { signal, onProgress, onCopied } = options;
    const writer = new DumpWriter(memory, output, begun.state, {
      signal,
      onProgress,
      onChunk: (written) => begun.record(written),
    });
    const written = await writer.run(layout, onCopied);
    const size = await output.finish(layout.size);
    await begun.complete();
    return { file, size, written, unreadable: begun.state.unreadable, resumed: begun.resumed };
  } catch (error) {
    throw error instanceof KvmiError ? error : fileError(file, error);
  } finally {
    await begun.close();
  }
}

function identityOf(
  { name = '', uuid = new Uint8Array(0) }: DumpSubject,
  { regions, size }: DumpLayout,
  { format, compression }: DumpOptions,
): DumpIdentity {
  return {
    version: 1,
    format,
    compression: compression ?? null,
    machine: `${name} ${Buffer.from(uuid).toString('hex')}`.trim(),
    chunkSize: CHUNK,
    size,
    regions: regions.map((region) => ({ gpa: region.gpa, size: region.size, offset: region.offset })),
  };
}

function fileError(file: string, cause: unknown): KvmiError {
  return new KvmiError('E_OUTPUT_FILE', `${file}: ${messageOf(cause)}`, {
    hint: 'Check that the directory may be written to and that there is room. Run it again to go on.',
    cause,
  });
}

/** Neither the dump nor its checksums write over anything. Checksums whose dump is gone are left-overs. */
function checkFree(file: string): void {
  const checksums = manifestPath(file);
  const isForeign = existsSync(checksums) && readManifest(file) === undefined;
  const taken = existsSync(file) ? file : isForeign ? checksums : undefined;
  if (taken === undefined) return;
  throw new KvmiError('E_OUTPUT_FILE', `${taken} exists`, {
    hint: 'Choose another name, or remove it first.',
  });
}

/** The file of a dump while it is not whole, and the record of how far it has come. */
class BegunDump {
  readonly resumed: boolean;
  readonly state: DumpState;
  readonly #file: string;
  readonly #partial: string;
  readonly #identity: DumpIdentity;
  readonly #journal: DumpJournal;
  readonly #fd: number;
  #recordedAt = 0;
  #recording: Promise<void> | undefined;

  constructor(file: string, identity: DumpIdentity, resume: boolean) {
    this.#file = file;
    this.#identity = identity;
    this.#partial = partialPath(file);
    try {
      const found = resume ? DumpJournal.open(this.#partial, identity) : undefined;
      if (found === undefined && resume) this.#refuseOther();
      if (found === undefined) rmSync(this.#partial, { force: true });
      const { O_RDWR, O_CREAT, O_EXCL, O_NOFOLLOW } = fsConstants;
      this.#fd = openSync(this.#partial, O_RDWR | O_NOFOLLOW | (found ? 0 : O_CREAT | O_EXCL), 0o600);
      this.#journal = found?.journal ?? DumpJournal.create(this.#partial, identity);
      this.state = found?.state ?? { checksums: [], frames: [], unreadable: 0 };
      this.resumed = this.state.checksums.length > 0;
    } catch (error) {
      throw error instanceof KvmiError ? error : fileError(file, error);
    }
  }

  #refuseOther(): void {
    if (!existsSync(this.#partial)) return;
    throw new KvmiError('E_OUTPUT_FILE', `${this.#partial} is the beginning of something else`, {
      hint: 'Another machine, format or size of memory. Choose another name, or start anew (--fresh).',
    });
  }

  output(layout: DumpLayout): DumpOutput {
    const { checksums, frames } = this.state;
    if (this.#identity.compression === null)
      return new PlainOutput(this.#fd, endOfChunk(layout, checksums.length), layout);
    const packed = frames.reduce((sum, [size]) => sum + size, 0);
    if (fstatSync(this.#fd).size < packed) {
      throw new KvmiError('E_OUTPUT_FILE', `${this.#partial} is shorter than what was written to it`, {
        hint: 'Start anew (--fresh).',
      });
    }
    return new ZstdOutput(this.#fd, frames);
  }

  /** From time to time, writes down how far the dump has come, when that much is on the disk. */
  record(written: number): void {
    if (this.#recording !== undefined || written - this.#recordedAt < RECORD_EVERY) return;
    this.#recordedAt = written;
    const record = this.#journal.next(this.state);
    this.#recording = syncData(this.#fd).then(() => {
      record.write();
      this.#recording = undefined;
    });
    // A full disk fails the dump where it writes.
    this.#recording.catch(() => {});
  }

  /** Gives the dump its name. */
  async complete(): Promise<void> {
    await this.#recording;
    await syncFile(this.#fd);
    writeManifest(this.#file, this.#identity, this.state);
    checkFree(this.#file);
    renameSync(this.#partial, this.#file);
    this.#journal.remove();
    this.#completed = true;
  }

  #completed = false;

  async close(): Promise<void> {
    await this.#recording?.catch(() => {});
    try {
      if (!this.#completed) this.#journal.next(this.state).write();
    } catch {
      // The disk is full: the records before it stand.
    }
    await closeFile(this.#fd);
  }
}

/** Where the first chunks of a dump end in its file. */
function endOfChunk({ regions }: DumpLayout, count: number): number {
  let left = count;
  for (const { offset, size } of regions) {
    const chunks = Math.ceil(size / CHUNK);
    if (left > 0 && left <= chunks) return offset + Math.min(size, left * CHUNK);
    left -= chunks;
  }
  return 0;
}

import {
  appendFileSync,
  existsSync,
  lstatSync,
  readFileSync,
  renameSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { KvmiError } from '../../error.ts';
import type { WrittenFormat } from './dump-layout.ts';
import type { Frame } from './seekable.ts';

/** What a dump is of and how it is laid out: the same for two dumps of which one can go on with the other. */
export interface DumpIdentity {
  readonly version: 1;
  readonly format: WrittenFormat;
  readonly compression: 'zstd' | null;
  /** Name and UUID of the machine. */
  readonly machine: string;
  /** Bytes of memory that one checksum is of, at most: it never spans regions. */
  readonly chunkSize: number;
  /** Of the file, unpacked. */
  readonly size: number;
  /** `offset`: where the region starts in the file, unpacked. */
  readonly regions: readonly { readonly gpa: number; readonly size: number; readonly offset: number }[];
}

/** How far a dump has come. */
export interface DumpState {
  /** CRC-32 of each chunk of guest memory in turn; 0 for one of zeros, which is not written. */
  readonly checksums: number[];
  /** The parts that the file is packed in so far. */
  readonly frames: Frame[];
  /** Pages that could not be read. */
  unreadable: number;
}

/** What stands beside a dump, in `FILE.checksums`, as JSON. */
export interface DumpManifest extends DumpIdentity, Pick<Readonly<DumpState>, 'checksums' | 'unreadable'> {}

/** How each file is called. */
export function manifestPath(file: string): string {
  return `${file}.checksums`;
}

export function writeManifest(file: string, identity: DumpIdentity, state: DumpState): void {
  const { checksums, unreadable } = state;
  const path = manifestPath(file);
  const fresh = `${path}.new`;
  rmSync(fresh, { force: true });
  writeFileSync(fresh, JSON.stringify({ ...identity, checksums, unreadable }), { mode: 0o600, flag: 'wx' });
  renameSync(fresh, path);
}

/** Undefined when there is none, or something else. */
export function readManifest(file: string): DumpManifest | undefined {
  try {
    const manifest = JSON.parse(readFileSync(manifestPath(file), 'utf8')) as DumpManifest;
    return isIdentity(manifest) && Array.isArray(manifest.checksums) ? manifest : undefined;
  } catch {
    return undefined;
  }
}

function isIdentity(value: DumpIdentity): boolean {
  const isRegion = ({ gpa, size, offset }: DumpIdentity['regions'][number]) =>
    [gpa, size, offset].every((number) => Number.isSafeInteger(number) && number >= 0);
  return (
    value.version === 1 &&
    value.chunkSize > 0 &&
    Array.isArray(value.regions) &&
    value.regions.every(isRegion)
  );
}

/** What was added since the record before; or the process that writes from here on. */
type Record = Readonly<DumpState> | { readonly writer: number };

/**
 * How far an unfinished dump has come, in `FILE.partial.checksums`: lines of JSON, the identity first, then what each
 * record adds. One that was cut off while it was written does not count.
 */
export class DumpJournal {
  readonly #path: string;
  readonly #recorded = { checksums: 0, frames: 0 };

  private constructor(path: string) {
    this.#path = path;
  }

  static create(partial: string, identity: DumpIdentity): DumpJournal {
    const path = manifestPath(partial);
    rmSync(path, { force: true });
    writeFileSync(path, `${JSON.stringify(identity)}\n`, { mode: 0o600, flag: 'wx' });
    const journal = new DumpJournal(path);
    journal.#append({ writer: process.pid });
    return journal;
  }

  /**
   * The journal of an unfinished dump and its state; undefined when it is not there, or of something else. Throws a
   * KvmiError with code E_OUTPUT_FILE when another process is at it.
   */
  static open(
    partial: string,
    identity: DumpIdentity,
  ): { readonly journal: DumpJournal; readonly state: DumpState } | undefined {
    const path = manifestPath(partial);
    if (!isOwn(partial) || !isOwn(path)) return undefined;
    const text = readFileSync(path, 'utf8');
    const whole = text.slice(0, text.lastIndexOf('\n') + 1);
    const [first, ...records] = whole.split('\n').slice(0, -1);
    if (first !== JSON.stringify(identity)) return undefined;
    const state: DumpState = { checksums: [], frames: [], unreadable: 0 };
    let writer = process.pid;
    for (const line of records) {
      const record = JSON.parse(line) as Record;
      if ('writer' in record) writer = record.writer;
      else add(state, record);
    }
    if (writer !== process.pid && isRunning(writer)) throw busy(partial, writer);
    truncateSync(path, Buffer.byteLength(whole));
    const journal = new DumpJournal(path);
    journal.#append({ writer: process.pid });
    journal.#mark(state);
    return { journal, state };
  }

  /** What `state` has more than the record before; `write` makes it durable. */
  next(state: DumpState): { write(): void } {
    const { checksums, frames } = this.#recorded;
    const record: Record = {
      checksums: state.checksums.slice(checksums),
      frames: state.frames.slice(frames),
      unreadable: state.unreadable,
    };
    this.#mark(state);
    return { write: () => this.#append(record) };
  }

  #append(record: Record): void {
    appendFileSync(this.#path, `${JSON.stringify(record)}\n`);
  }

  #mark({ checksums, frames }: DumpState): void {
    this.#recorded.checksums = checksums.length;
    this.#recorded.frames = frames.length;
  }

  remove(): void {
    rmSync(this.#path, { force: true });
  }
}

function add(state: DumpState, { checksums, frames, unreadable }: DumpState): void {
  for (const checksum of checksums) state.checksums.push(checksum);
  for (const frame of frames) state.frames.push(frame);
  state.unreadable = unreadable;
}

function isRunning(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

function busy(partial: string, pid: number): KvmiError {
  return new KvmiError('E_OUTPUT_FILE', `${partial} is being written by process ${pid}`, {
    hint: 'Wait for it, or choose another name. If that process is something else, start anew (--fresh).',
    data: { pid },
  });
}

/** A file of this user's that is no link: another one's in a shared directory is not written to. */
function isOwn(path: string): boolean {
  if (!existsSync(path)) return false;
  const stat = lstatSync(path);
  return stat.isFile() && (process.geteuid === undefined || stat.uid === process.geteuid());
}

import { F_SEAL, libc, sealsOf } from './libc.ts';
import { SharedMapping } from './shared-mapping.ts';

const PAGE = 4096;
/** ArrayBuffers cannot be larger than 4 GiB on every Node; a segment is well below that. */
const SEGMENT = 2 ** 30;
const SEEK_DATA = 3;
const SEEK_HOLE = 4;
const ENXIO = 6;

/**
 * Where the next data of a file at or after `offset` is; undefined when there is none, `offset` when the file cannot tell.
 */
export function nextData(fd: number, offset: number): number | undefined {
  const found = Number(libc().lseek(fd, offset, SEEK_DATA));
  if (found >= 0) return found;
  return libc().errno() === ENXIO ? undefined : offset;
}

/** Whether a file keeps its size at least: only such a file of others is safe to map. False without koffi. */
export function cannotShrink(fd: number): boolean {
  try {
    return (sealsOf(fd) & F_SEAL.SHRINK) !== 0;
  } catch {
    return false;
  }
}

/**
 * A file that is mapped to be read: as fast as memory is copied. Reading a hole of a shared-memory file through
 * a mapping would allocate it, so that only pages which hold data are read this way.
 */
export class MappedFile {
  readonly #fd: number;
  readonly #segments: SharedMapping[] = [];
  /** One byte a page: 1 where data was found. Data stays data, but for balloons, which cost an empty page then. */
  readonly #hasData: Uint8Array;
  readonly #size: number;

  private constructor(fd: number, size: number) {
    this.#fd = fd;
    this.#size = size;
    this.#hasData = new Uint8Array(Math.ceil(size / PAGE));
    try {
      for (let at = 0; at < size; at += SEGMENT)
        this.#segments.push(new SharedMapping('a file', fd, Math.min(SEGMENT, size - at), 'read', at));
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /** Undefined where files cannot be mapped: without koffi, or when the kernel refuses. */
  static map(fd: number, size: number): MappedFile | undefined {
    try {
      return new MappedFile(fd, size);
    } catch {
      return undefined;
    }
  }

  /** Copies from `offset` on; false when part of it is a hole or beyond the end. */
  copy(offset: number, into: Uint8Array): boolean {
    const end = offset + into.length;
    if (end > this.#size || !this.#isData(offset, end)) return false;
    for (let done = 0; done < into.length; ) {
      const at = offset + done;
      const within = at % SEGMENT;
      const length = Math.min(into.length - done, SEGMENT - within);
      into.set(this.#segments[Math.floor(at / SEGMENT)]!.bytes.subarray(within, within + length), done);
      done += length;
    }
    return true;
  }

  #isData(start: number, end: number): boolean {
    const first = Math.floor(start / PAGE);
    const last = Math.ceil(end / PAGE);
    const hole = this.#hasData.subarray(first, last).indexOf(0);
    if (hole < 0) return true;
    const from = (first + hole) * PAGE;
    if (nextData(this.#fd, from) !== from) return false;
    const dataEnd = Number(libc().lseek(this.#fd, from, SEEK_HOLE));
    this.#hasData.fill(1, first + hole, Math.floor(Math.min(dataEnd, this.#size) / PAGE));
    return dataEnd >= Math.min(last * PAGE, this.#size);
  }

  /** Nothing may be read afterwards. */
  close(): void {
    for (const segment of this.#segments) segment.unmap();
    this.#segments.length = 0;
  }
}

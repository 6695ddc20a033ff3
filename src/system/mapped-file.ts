import { createRequire } from 'node:module';

const PAGE = 4096;
/** ArrayBuffers cannot be larger than 4 GiB on every Node; a segment is well below that. */
const SEGMENT = 2 ** 30;
const PROT_READ = 1;
const MAP_SHARED = 1;
const SEEK_DATA = 3;
const SEEK_HOLE = 4;

interface Libc {
  mmap(size: number, fd: number, offset: number): unknown;
  munmap(address: unknown, size: number): number;
  lseek(fd: number, offset: number, whence: number): number | bigint;
  view(address: unknown, size: number): ArrayBuffer;
}

let libc: Libc | undefined | null;

/** The C library through koffi, which is optional; loaded when it is first needed. */
function loadLibc(): Libc | undefined {
  if (libc !== undefined) return libc ?? undefined;
  try {
    const koffi = createRequire(import.meta.url)('koffi');
    const library = koffi.load('libc.so.6');
    const mmap = library.func('void *mmap(void *, size_t, int, int, int, int64_t)');
    const munmap = library.func('int munmap(void *, size_t)');
    const lseek = library.func('int64_t lseek(int, int64_t, int)');
    libc = {
      mmap: (size, fd, offset) => mmap(null, size, PROT_READ, MAP_SHARED, fd, offset),
      munmap,
      lseek,
      view: (address, size) => koffi.view(address, size),
    };
  } catch {
    libc = null;
  }
  return libc ?? undefined;
}

/**
 * A file that is mapped to be read: as fast as memory is copied. Reading a hole of a shared-memory file through
 * a mapping would allocate it, so that only pages which hold data are read this way.
 */
export class MappedFile {
  readonly #libc: Libc;
  readonly #fd: number;
  readonly #segments: { address: unknown; bytes: Uint8Array }[] = [];
  /** One byte a page: 1 where data was found. Data stays data, but for balloons, which cost an empty page then. */
  readonly #hasData: Uint8Array;
  readonly #size: number;

  private constructor(library: Libc, fd: number, size: number) {
    this.#libc = library;
    this.#fd = fd;
    this.#size = size;
    this.#hasData = new Uint8Array(Math.ceil(size / PAGE));
    for (let at = 0; at < size; at += SEGMENT) {
      const length = Math.min(SEGMENT, size - at);
      const address = library.mmap(length, fd, at);
      this.#segments.push({ address, bytes: new Uint8Array(library.view(address, length)) });
    }
  }

  /** Undefined where files cannot be mapped: without koffi, or when the kernel refuses. */
  static map(fd: number, size: number): MappedFile | undefined {
    const library = loadLibc();
    if (!library) return undefined;
    try {
      return new MappedFile(library, fd, size);
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
    if (this.nextData(from) !== from) return false;
    const dataEnd = Number(this.#libc.lseek(this.#fd, from, SEEK_HOLE));
    this.#hasData.fill(1, first + hole, Math.floor(Math.min(dataEnd, this.#size) / PAGE));
    return dataEnd >= Math.min(last * PAGE, this.#size);
  }

  /** Where the next data at or after `offset` is; undefined when there is none. */
  nextData(offset: number): number | undefined {
    const found = Number(this.#libc.lseek(this.#fd, offset, SEEK_DATA));
    return found < 0 ? undefined : found;
  }

  /** Nothing may be read afterwards. */
  close(): void {
    for (const { address, bytes } of this.#segments) this.#libc.munmap(address, bytes.length);
    this.#segments.length = 0;
  }
}

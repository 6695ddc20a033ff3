import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs';
import { KvmiError, messageOf } from '../../error.ts';

const { O_RDONLY, O_NONBLOCK } = constants;

/** Bytes that can be read anywhere. A dump is not trusted: its offsets may point outside. */
export interface Source {
  readonly size: number;
  /** False when not all of `into` lies in it. */
  read(offset: number, into: Uint8Array): boolean;
}

function unusable(path: string, why: string, options: { readonly cause?: unknown } = {}): KvmiError {
  return new KvmiError('E_DUMP_FILE', `${path}: ${why}`, {
    hint: 'Check the path and that the file may be read.',
    ...options,
  });
}

/** A file that is open for reading. */
export class FileSource implements Source {
  readonly path: string;
  readonly size: number;
  #fd: number | undefined;

  constructor(path: string) {
    this.path = path;
    try {
      // A FIFO would wait for its writer.
      this.#fd = openSync(path, O_RDONLY | O_NONBLOCK);
    } catch (error) {
      throw unusable(path, messageOf(error), { cause: error });
    }
    const stats = fstatSync(this.#fd);
    this.size = stats.size;
    if (stats.isFile()) return;
    this.close();
    throw unusable(path, stats.isDirectory() ? 'it is a directory' : 'it is no regular file');
  }

  read(offset: number, into: Uint8Array): boolean {
    if (this.#fd === undefined || !(offset >= 0 && offset + into.length <= this.size)) return false;
    for (let done = 0; done < into.length; ) {
      const count = this.#readSome(this.#fd, into.subarray(done), offset + done);
      if (count === 0) return false;
      done += count;
    }
    return true;
  }

  #readSome(fd: number, into: Uint8Array, offset: number): number {
    try {
      return readSync(fd, into, 0, into.length, offset);
    } catch (error) {
      throw unusable(this.path, messageOf(error), { cause: error });
    }
  }

  close(): void {
    if (this.#fd !== undefined) closeSync(this.#fd);
    this.#fd = undefined;
  }
}

/** Bytes of a source; undefined when they are not all there or more than `limit`. */
export function readPart(source: Source, offset: number, size: number, limit = 1 << 20): Buffer | undefined {
  if (!(size >= 0 && size <= limit)) return undefined;
  const into = Buffer.alloc(size);
  return source.read(offset, into) ? into : undefined;
}

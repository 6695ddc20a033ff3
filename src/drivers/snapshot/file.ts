import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { KvmiError, messageOf } from '../../error.ts';

/** Bytes that can be read anywhere. A dump is not trusted: its offsets may point outside. */
export interface Source {
  readonly size: number;
  /** False when not all of `into` lies in it. */
  read(offset: number, into: Uint8Array): boolean;
}

/** A file that is open for reading. */
export class FileSource implements Source {
  readonly path: string;
  readonly size: number;
  #fd: number | undefined;

  constructor(path: string) {
    this.path = path;
    try {
      this.#fd = openSync(path, 'r');
      this.size = fstatSync(this.#fd).size;
    } catch (error) {
      throw new KvmiError('E_DUMP_FILE', `${path}: ${messageOf(error)}`, {
        hint: 'Check the path and that the file may be read.',
        cause: error,
      });
    }
  }

  read(offset: number, into: Uint8Array): boolean {
    if (this.#fd === undefined || !(offset >= 0 && offset + into.length <= this.size)) return false;
    for (let done = 0; done < into.length; ) {
      const count = readSync(this.#fd, into, done, into.length - done, offset + done);
      if (count === 0) return false;
      done += count;
    }
    return true;
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

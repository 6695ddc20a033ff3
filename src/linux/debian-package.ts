/** A part of a file. */
export interface Extent {
  readonly start: number;
  readonly size: number;
}

const AR_MAGIC = '!<arch>\n';
const AR_HEADER = 60;
/** A Debian package has three members; others come after them. */
const MAX_MEMBERS = 16;

export function isDebianPackage(start: Uint8Array): boolean {
  return Buffer.from(start.subarray(0, AR_MAGIC.length)).toString('latin1') === AR_MAGIC;
}

/**
 * Where `data.tar…` lies in a Debian package (deb(5), ar(5)); undefined when there is none. `read` gives bytes of the
 * package, fewer at its end.
 */
export function packageData(read: (start: number, size: number) => Buffer): Extent | undefined {
  let at = AR_MAGIC.length;
  for (let i = 0; i < MAX_MEMBERS; i++) {
    const header = read(at, AR_HEADER).toString('latin1');
    const size = Number(header.slice(48, 58));
    if (header.length < AR_HEADER || header.slice(58) !== '`\n' || !Number.isSafeInteger(size) || size < 0)
      return undefined;
    if (header.startsWith('data.tar')) return { start: at + AR_HEADER, size };
    at += AR_HEADER + size + (size % 2);
  }
  return undefined;
}

const BLOCK = 512;
const REGULAR = new Set(['0', '\0', '7']);

/** The first regular file of a tar archive that `wanted` takes by its path; undefined when there is none. */
export async function fileFromTar(
  archive: AsyncIterable<Uint8Array>,
  wanted: (path: string) => boolean,
  maxSize: number,
): Promise<Buffer | undefined> {
  const source = new ByteSource(archive);
  try {
    for (;;) {
      const header = await source.take(BLOCK);
      if (header === undefined || header[0] === 0) return undefined;
      const { path, size, kind } = entryOf(header);
      if (!(size >= 0)) return undefined;
      if (REGULAR.has(kind) && wanted(path)) return size > maxSize ? undefined : await source.take(size);
      if (!(await source.skip(Math.ceil(size / BLOCK) * BLOCK))) return undefined;
    }
  } finally {
    await source.end();
  }
}

/** The header of ustar; names that do not fit into one are those of no kernel. */
function entryOf(header: Buffer) {
  const text = (start: number, size: number) => {
    const field = header.toString('latin1', start, start + size);
    const zero = field.indexOf('\0');
    return zero < 0 ? field : field.slice(0, zero);
  };
  const prefix = text(257, 5) === 'ustar' && text(257, 8) !== 'ustar  ' ? text(345, 155) : '';
  const octal = text(124, 12).trim();
  return {
    path: prefix === '' ? text(0, 100) : `${prefix}/${text(0, 100)}`,
    size: /^[0-7]+$/.test(octal) ? Number.parseInt(octal, 8) : Number.NaN,
    kind: header.toString('latin1', 156, 157),
  };
}

/** Bytes of a stream by count. */
class ByteSource {
  readonly #chunks: AsyncIterator<Uint8Array>;
  #rest: Uint8Array = new Uint8Array();

  constructor(stream: AsyncIterable<Uint8Array>) {
    this.#chunks = stream[Symbol.asyncIterator]();
  }

  /** Exactly `size` bytes; undefined when the stream ends before. */
  async take(size: number): Promise<Buffer | undefined> {
    const parts: Uint8Array[] = [];
    return (await this.#consume(size, (part) => parts.push(part))) ? Buffer.concat(parts, size) : undefined;
  }

  /** Nothing more is wanted: what makes the stream is ended. */
  async end(): Promise<void> {
    await this.#chunks.return?.();
  }

  skip(size: number): Promise<boolean> {
    return this.#consume(size, () => {});
  }

  async #consume(size: number, use: (part: Uint8Array) => void): Promise<boolean> {
    for (let left = size; left > 0; ) {
      if (this.#rest.length === 0) {
        const { done, value } = await this.#chunks.next();
        if (done) return false;
        this.#rest = value;
      }
      const part = this.#rest.subarray(0, left);
      this.#rest = this.#rest.subarray(part.length);
      left -= part.length;
      use(part);
    }
    return true;
  }
}

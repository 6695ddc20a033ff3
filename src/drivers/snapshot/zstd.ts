import * as zlib from 'node:zlib';
import { KvmiError } from '../../error.ts';
import { type Koffi, type LibraryHandle, loadKoffi } from '../../system/koffi.ts';

/** Zstandard (RFC 8878), frame by frame. */
export interface Zstd {
  /** `bytes` as one frame with a checksum, made in another thread. They must not change before it is there. */
  compress(bytes: Uint8Array): Promise<Uint8Array>;
  /** The `size` bytes that a frame stands for; undefined when it is damaged or stands for another number. */
  decompress(frame: Uint8Array, size: number): Uint8Array | undefined;
}

/** The fastest level: the guest may be paused meanwhile. */
const LEVEL = 1;
/** `ZSTD_cParameter` of zstd.h. */
const PARAMETER = { compressionLevel: 100, checksumFlag: 201 } as const;
const LIBRARIES = ['libzstd.so.1', 'libzstd.1.dylib'];

let loaded: Zstd | undefined;

/** Throws a KvmiError with code E_DUMP_COMPRESSION when this program has no Zstandard. */
export function loadZstd(): Zstd {
  loaded ??= zstdOfNode() ?? zstdOfLibrary();
  if (loaded !== undefined) return loaded;
  throw new KvmiError('E_DUMP_COMPRESSION', 'Zstandard is not available', {
    hint: 'It takes Node.js 22.15 or newer, or the library libzstd and the npm package koffi.',
  });
}

interface NodeZstd {
  readonly zstdCompress?: (
    bytes: Uint8Array,
    options: { readonly params: Readonly<Record<number, number>> },
    done: (error: Error | null, frame: Buffer) => void,
  ) => void;
  readonly zstdDecompressSync?: (frame: Uint8Array, options: { readonly maxOutputLength: number }) => Buffer;
}

/** Newer versions of Node.js have it. */
function zstdOfNode(): Zstd | undefined {
  const { zstdCompress, zstdDecompressSync } = zlib as NodeZstd;
  if (zstdCompress === undefined || zstdDecompressSync === undefined) return undefined;
  const params = { [PARAMETER.compressionLevel]: LEVEL, [PARAMETER.checksumFlag]: 1 };
  return {
    compress: (bytes) =>
      new Promise((resolve, reject) => {
        zstdCompress(bytes, { params }, (error, frame) => (error ? reject(error) : resolve(frame)));
      }),
    decompress(frame, size) {
      try {
        const bytes = zstdDecompressSync(frame, { maxOutputLength: Math.max(1, size) });
        return bytes.length === size ? bytes : undefined;
      } catch {
        return undefined;
      }
    },
  };
}

/** The library that nearly every Linux has, through koffi, which is optional. */
function zstdOfLibrary(): Zstd | undefined {
  try {
    return new LibraryZstd(loadFirst(loadKoffi(), LIBRARIES));
  } catch {
    return undefined;
  }
}

function loadFirst(koffi: Koffi, names: readonly string[]): LibraryHandle {
  for (const name of names.slice(0, -1)) {
    try {
      return koffi.load(name);
    } catch {
      // The next name may be the one of this system.
    }
  }
  return koffi.load(names.at(-1)!);
}

class LibraryZstd implements Zstd {
  readonly #functions;
  /** Compression contexts that are not in use. */
  readonly #contexts: unknown[] = [];

  constructor(library: LibraryHandle) {
    this.#functions = {
      create: library.func('void *ZSTD_createCCtx(void)'),
      set: library.func('size_t ZSTD_CCtx_setParameter(void *context, int parameter, int value)'),
      bound: library.func('size_t ZSTD_compressBound(size_t size)'),
      compress: library.func(
        'size_t ZSTD_compress2(void *context, void *into, size_t room, void *from, size_t size)',
      ),
      decompress: library.func('size_t ZSTD_decompress(void *into, size_t room, void *from, size_t size)'),
    };
  }

  compress(bytes: Uint8Array): Promise<Uint8Array> {
    const { compress, bound } = this.#functions;
    const into = Buffer.allocUnsafeSlow(Number(bound(bytes.length)));
    const context = this.#contexts.pop() ?? this.#newContext();
    return new Promise((resolve, reject) => {
      compress.async(context, into, into.length, bytes, bytes.length, (error: unknown, size: unknown) => {
        this.#contexts.push(context);
        // Errors are numbers that no frame can have as its size.
        if (error !== null || Number(size) > into.length)
          reject(error ?? new Error(`zstd could not compress ${bytes.length} bytes`));
        else resolve(into.subarray(0, Number(size)));
      });
    });
  }

  #newContext(): unknown {
    const context = this.#functions.create();
    this.#functions.set(context, PARAMETER.compressionLevel, LEVEL);
    this.#functions.set(context, PARAMETER.checksumFlag, 1);
    return context;
  }

  decompress(frame: Uint8Array, size: number): Uint8Array | undefined {
    const into = Buffer.allocUnsafeSlow(size);
    return Number(this.#functions.decompress(into, size, frame, frame.length)) === size ? into : undefined;
  }
}

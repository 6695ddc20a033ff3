import { spawn } from 'node:child_process';
import { pipeline } from 'node:stream/promises';
import { KvmiError } from '../error.ts';

/** A compression that kernels and packages come in, and the program that undoes it with `-dc`. */
interface Compression {
  readonly magic: readonly number[];
  readonly program: string;
}

const COMPRESSIONS: readonly Compression[] = [
  { magic: [0x1f, 0x8b], program: 'gzip' },
  { magic: [0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00], program: 'xz' },
  { magic: [0x28, 0xb5, 0x2f, 0xfd], program: 'zstd' },
  { magic: [0x02, 0x21, 0x4c, 0x18], program: 'lz4' },
  { magic: [0x04, 0x22, 0x4d, 0x18], program: 'lz4' },
  { magic: [0x42, 0x5a, 0x68], program: 'bzip2' },
  { magic: [0x5d, 0x00, 0x00], program: 'lzma' },
];

/** The program that decompresses what starts with `bytes`; undefined when it is in no known compression. */
export function decompressorOf(bytes: Uint8Array): string | undefined {
  return COMPRESSIONS.find(({ magic }) => magic.every((byte, i) => bytes[i] === byte))?.program;
}

/**
 * What `program` makes of `input`. It is ended when nobody wants more. What follows the compressed data is no error:
 * the size behind a kernel's payload looks like garbage to it. Throws a KvmiError with code E_PROGRAM when there is no
 * such program.
 */
export async function* decompressed(
  program: string,
  input: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
): AsyncGenerator<Buffer> {
  const child = spawn(program, ['-dc'], { stdio: ['pipe', 'pipe', 'ignore'], detached: true });
  const failed = new Promise<never>((_resolve, reject) => {
    child.once('error', (cause) => reject(missing(program, cause)));
  });
  failed.catch(() => {});
  // The program may close its input before it has seen all of it.
  const fed = pipeline(input, child.stdin).catch(() => {});
  try {
    await Promise.race([failed, new Promise((resolve) => child.once('spawn', resolve))]);
    for await (const chunk of child.stdout) yield chunk as Buffer;
  } finally {
    child.kill();
    child.stdin.destroy();
    await fed;
  }
}

function missing(program: string, cause: Error): KvmiError {
  return new KvmiError('E_PROGRAM', `${program} cannot be started: ${cause.message}`, {
    hint: `Install ${program}, or give a file that is not compressed.`,
    data: { program },
    cause,
  });
}

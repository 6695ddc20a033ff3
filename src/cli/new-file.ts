import { writeFileSync } from 'node:fs';
import { KvmiError, UsageError } from '../error.ts';

/** Writes a file that only its owner may read. One that exists is left alone. */
export function writeNewFile(path: string, content: string | Uint8Array): void {
  try {
    writeFileSync(path, content, { mode: 0o600, flag: 'wx' });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST')
      throw new UsageError(`${path} exists`, 'Choose another name, or remove it first.');
    throw new KvmiError('E_OUTPUT_FILE', `${path} cannot be written: ${(error as Error).message}`, {
      hint: 'Check that the directory may be written to and that there is room.',
      cause: error,
    });
  }
}

import { chmodSync, mkdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';

/**
 * Writes a file of a cache, whole or not at all, for its owner only. Answers whether that worked: a cache that cannot be
 * written is no error.
 */
export function keepFile(directory: string, file: string, content: string | Uint8Array): boolean {
  const fresh = `${file}.${process.pid}`;
  try {
    mkdirSync(directory, { recursive: true, mode: 0o700 });
    writeFileSync(fresh, content, { mode: 0o600, flag: 'wx' });
    chmodSync(fresh, 0o600);
    renameSync(fresh, file);
    return true;
  } catch {
    discard(fresh);
    return false;
  }
}

function discard(file: string): void {
  try {
    rmSync(file, { force: true });
  } catch {
    // There is no such directory, or it belongs to somebody else: then nothing was written either.
  }
}

import { createHash } from 'node:crypto';
import { statSync } from 'node:fs';
import { join } from 'node:path';
import { runtimeDirectory } from '../../../system/runtime-directory.ts';

/**
 * Which socket a path leads to, whatever way it is written. A QEMU that is started anew on the same path makes a new
 * socket: another inode or, where the file system gives the number out again, another time. Throws what `statSync`
 * throws.
 */
export function identityOf(qmp: string): string {
  const { dev, ino, mtimeNs } = statSync(qmp, { bigint: true });
  return `${dev}-${ino}-${mtimeNs}`;
}

/** Where the holder of the socket offers its connection; undefined without a directory that is private. */
export function offerPath(identity: string): string | undefined {
  const directory = runtimeDirectory();
  // Short, because a socket's path has 107 bytes at most.
  const name = createHash('sha256').update(identity).digest('hex').slice(0, 16);
  return directory && join(directory, `qmp-${name}`);
}

import { realpathSync, statSync } from 'node:fs';
import { dirname } from 'node:path';

const WRITE_OF_OTHERS = 0o022;
const ENTRY_OF_OTHERS = 0o011;
const STICKY = 0o1000;
const ROOT = 0;

/**
 * Whether only this user, and root, can be at the other end of the Unix socket at `path`, and only they can connect to
 * it: the socket is theirs, nobody else may write to it or enter its directory, and nobody else can put another one in
 * its place.
 */
export function isPrivateSocket(path: string): boolean {
  const user = process.geteuid?.();
  if (user === undefined) return false;
  const isOurs = ({ uid }: { readonly uid: number }) => uid === user || uid === ROOT;
  try {
    const place = realpathSync(path);
    const socket = statSync(place);
    if (!socket.isSocket() || !isOurs(socket)) return false;
    let isClosed = (socket.mode & WRITE_OF_OTHERS) === 0;
    for (let above = dirname(place), last = place; above !== last; last = above, above = dirname(above)) {
      const directory = statSync(above);
      // Whoever may write to a directory may replace what is in it, but for what is not his in a sticky one.
      const isSafe = (directory.mode & WRITE_OF_OTHERS) === 0 || (directory.mode & STICKY) !== 0;
      if (!isOurs(directory) || !isSafe) return false;
      isClosed ||= (directory.mode & ENTRY_OF_OTHERS) === 0;
    }
    return isClosed;
  } catch {
    return false;
  }
}

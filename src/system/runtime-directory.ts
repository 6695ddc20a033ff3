import { lstatSync, mkdirSync } from 'node:fs';
import { isAbsolute, join } from 'node:path';

const ROOT = 0;
const OTHERS = 0o077;

/**
 * A directory that only this process's user can enter, for sockets through which processes of that user find each
 * other: /run/kvmi for root, $XDG_RUNTIME_DIR/kvmi, or /tmp/kvmi-UID. Made when it is not there. Undefined when what
 * is there belongs to somebody else, can be entered by others, or is no directory: nothing in it is to be trusted.
 */
export function runtimeDirectory(): string | undefined {
  const user = process.geteuid?.();
  if (user === undefined) return undefined;
  const path = pathFor(user, process.env.XDG_RUNTIME_DIR);
  try {
    mkdirSync(path, { mode: 0o700 });
  } catch {
    // It is there already, or cannot be made: what is there decides.
  }
  return isPrivate(path, user) ? path : undefined;
}

function pathFor(user: number, session: string | undefined): string {
  if (user === ROOT) return '/run/kvmi';
  if (session !== undefined && isAbsolute(session) && isPrivate(session, user)) return join(session, 'kvmi');
  return `/tmp/kvmi-${user}`;
}

/** No link is followed: a link can be changed by whoever made it. */
function isPrivate(path: string, user: number): boolean {
  try {
    const found = lstatSync(path);
    return found.isDirectory() && found.uid === user && (found.mode & OTHERS) === 0;
  } catch {
    return false;
  }
}

import type { Socket } from 'node:net';
import { getU32 } from '../abi/bytes.ts';
import { libc } from './libc.ts';

const SOL_SOCKET = 1;
const SO_PEERCRED = 17;
/** struct ucred: pid, uid, gid. */
const SIZE = 12;

/**
 * The process that listens, or listened first, at the other end of a connected Unix socket, as the kernel knows it.
 * Undefined when the kernel cannot be asked (no koffi), or the process is in a PID namespace that is not seen from here.
 */
export function peerOf(socket: Socket): number | undefined {
  const fd = (socket as { _handle?: { fd?: number } })._handle?.fd;
  if (fd === undefined || fd < 0) return undefined;
  try {
    const credentials = new Uint8Array(SIZE);
    const size = Uint8Array.of(SIZE, 0, 0, 0);
    if (libc().getsockopt(fd, SOL_SOCKET, SO_PEERCRED, credentials, size) !== 0) return undefined;
    return getU32(credentials, 0) || undefined;
  } catch {
    return undefined;
  }
}

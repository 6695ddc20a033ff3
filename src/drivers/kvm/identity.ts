import { createHash } from 'node:crypto';
import { commandLine, readText, startTimeOf } from '../../system/proc.ts';
import { parseQemuArguments } from '../../system/qemu-arguments.ts';

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;

/** The name of a process's program. */
export function programOf(pid: number): string {
  return readText(`/proc/${pid}/comm`)?.trim() ?? String(pid);
}

/** What QEMU's `-name` says, else the program and its process. */
export function nameOf(pid: number): string {
  return parseQemuArguments(commandLine(pid).slice(1)).name || `${programOf(pid)}:${pid}`;
}

/** What QEMU's `-uuid` says, else one that stays the same as long as the process lives. */
export function uuidOf(pid: number, vmFd: number): Uint8Array {
  const { uuid: given = '' } = parseQemuArguments(commandLine(pid).slice(1));
  if (UUID.test(given)) return Uint8Array.from(Buffer.from(given.replaceAll('-', ''), 'hex'));
  const boot = readText('/proc/sys/kernel/random/boot_id') ?? '';
  const hash = createHash('sha256')
    .update(`${boot}${pid} ${startTimeOf(pid)} ${vmFd}`)
    .digest();
  const uuid = Uint8Array.from(hash.subarray(0, 16));
  // Version 8 (vendor-specific), RFC 9562.
  uuid[6] = (uuid[6]! & 0x0f) | 0x80;
  uuid[8] = (uuid[8]! & 0x3f) | 0x80;
  return uuid;
}

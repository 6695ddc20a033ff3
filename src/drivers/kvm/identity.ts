import { createHash } from 'node:crypto';
import { readText, startTimeOf } from '../../system/proc.ts';

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;

/** The arguments that a process was started with. */
export function argumentsOf(pid: number): string[] {
  return (readText(`/proc/${pid}/cmdline`) ?? '').split('\0');
}

/** The name of a process's program. */
export function programOf(pid: number): string {
  return readText(`/proc/${pid}/comm`)?.trim() ?? String(pid);
}

/** What QEMU's `-name` says, else the program and its process. */
export function nameOf(pid: number): string {
  const args = argumentsOf(pid);
  const name = args[args.indexOf('-name') + 1];
  if (!args.includes('-name') || !name) return `${programOf(pid)}:${pid}`;
  return /(?:^|,)guest=([^,]*)/.exec(name)?.[1] ?? name.split(',')[0]!;
}

/** What QEMU's `-uuid` says, else one that stays the same as long as the process lives. */
export function uuidOf(pid: number, vmFd: number): Uint8Array {
  const args = argumentsOf(pid);
  const given = args[args.indexOf('-uuid') + 1] ?? '';
  if (args.includes('-uuid') && UUID.test(given)) {
    return Uint8Array.from(Buffer.from(given.replaceAll('-', ''), 'hex'));
  }
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

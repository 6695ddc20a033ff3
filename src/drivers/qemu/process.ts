import { readdirSync, readFileSync, readlinkSync, statSync } from 'node:fs';
import { type QmpTransport, recordsOf } from './qmp.ts';

/** One line of /proc/PID/maps. */
export interface Mapping {
  readonly start: number;
  readonly end: number;
  readonly shared: boolean;
  /** Where the mapping starts in its file. */
  readonly offset: number;
  /** `major:minor` in hexadecimal, and the inode of the file; inode 0 for anonymous memory. */
  readonly device: string;
  readonly inode: number;
}

const MAPPING = /^([0-9a-f]+)-([0-9a-f]+) ...([sp]) ([0-9a-f]+) ([0-9a-f]+:[0-9a-f]+) (\d+)/;

/** The mappings of a process; throws what `readFileSync` throws (EACCES without the right to trace it). */
export function readMappings(pid: number): Mapping[] {
  const lines = readFileSync(`/proc/${pid}/maps`, 'latin1').split('\n');
  return lines.flatMap((line) => {
    const match = MAPPING.exec(line);
    if (match === null) return [];
    const [start, end, offset] = [match[1]!, match[2]!, match[4]!].map((hex) => Number.parseInt(hex, 16));
    const mapping = {
      start: start!,
      end: end!,
      shared: match[3] === 's',
      offset: offset!,
      device: match[5]!,
      inode: Number(match[6]),
    };
    return [mapping];
  });
}

/** The path of a descriptor of `pid` (/proc/PID/fd/N) that is open on the file of `mapping`. */
export function descriptorOf(pid: number, mapping: Mapping): string | undefined {
  const [major, minor] = mapping.device.split(':').map((hex) => Number.parseInt(hex, 16));
  return descriptors(pid).find((path) => {
    try {
      const { ino, dev } = statSync(path);
      return ino === mapping.inode && deviceMajor(dev) === major && deviceMinor(dev) === minor;
    } catch {
      return false;
    }
  });
}

/** The paths /proc/PID/fd/N of a process; none without the right to see them. */
export function descriptors(pid: number): string[] {
  try {
    return readdirSync(`/proc/${pid}/fd`).map((fd) => `/proc/${pid}/fd/${fd}`);
  } catch {
    return [];
  }
}

/** The arguments of a process, empty when it has ended or has none. */
export function commandLine(pid: number): string[] {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0').slice(0, -1);
  } catch {
    return [];
  }
}

/** The effective user id of a process. */
export function userOf(pid: number): number | undefined {
  return statusNumber(pid, 'Uid', 1);
}

/** True when the executable looks like QEMU's system emulator. */
export function isQemu(pid: number): boolean {
  let executable: string;
  try {
    executable = readlinkSync(`/proc/${pid}/exe`);
  } catch {
    executable = commandLine(pid)[0] ?? '';
  }
  return /(?:^|\/)(?:qemu-system-|qemu-kvm|kvm)[^/]*(?: \(deleted\))?$/.test(executable);
}

/** When a process started, in milliseconds of CLOCK_MONOTONIC (the clock of /proc/PID/stat but for suspended time). */
export function startTimeOf(pid: number): number {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return Number(fields[19]) * 10;
  } catch {
    return 0;
  }
}

/** Every QEMU of this host that this process can see. */
export function qemuProcesses(): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter(isQemu);
}

/**
 * The process of the QEMU behind `qmp`: the one that its vCPU threads belong to. QEMU names them as its own PID
 * namespace does. Undefined when it cannot be told, for example when QEMU runs on another host.
 */
export async function findQemuProcess(qmp: QmpTransport): Promise<number | undefined> {
  const cpus = recordsOf(await qmp.execute('query-cpus-fast'), 'the list of vCPUs');
  const threads = cpus.map((cpu) => Number(cpu['thread-id']));
  const candidates = qemuProcesses().filter((pid) => {
    const own = threadNames(pid);
    return threads.every((thread) => own.has(thread));
  });
  return candidates.length === 1 ? candidates[0] : undefined;
}

/** The numbers of a process's threads in its own PID namespace. */
function threadNames(pid: number): Set<number | undefined> {
  try {
    return new Set(
      readdirSync(`/proc/${pid}/task`).map((thread) => statusNumber(Number(thread), 'NSpid', -1)),
    );
  } catch {
    return new Set();
  }
}

/** Number `index` of a line of /proc/PID/status, from the end when it is negative. */
function statusNumber(pid: number, name: string, index: number): number | undefined {
  if (!Number.isSafeInteger(pid) || pid <= 0) return undefined;
  try {
    const status = readFileSync(`/proc/${pid}/status`, 'latin1');
    const values = new RegExp(`^${name}:\\s+(.*)$`, 'm').exec(status)?.[1]?.split(/\s+/);
    const value = values?.at(index);
    return value === undefined ? undefined : Number(value);
  } catch {
    return undefined;
  }
}

/** The kernel's encoding of device numbers in `st_dev`. */
function deviceMajor(dev: number): number {
  return Math.floor(dev / 256) % 4096;
}

function deviceMinor(dev: number): number {
  return (dev % 256) + Math.floor(dev / 2 ** 20) * 256;
}

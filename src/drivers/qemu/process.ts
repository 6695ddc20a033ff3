import { statSync } from 'node:fs';
import {
  commandLine,
  descriptors,
  type Mapping,
  processes,
  readLink,
  statusNumber,
  threads,
} from '../../system/proc.ts';
import { type QmpConnection, recordsOf } from './qmp.ts';

/** The path of a descriptor of `pid` (/proc/PID/fd/N) that is open on the file of `mapping`. */
export function descriptorOf(pid: number, mapping: Mapping): string | undefined {
  const [major, minor] = mapping.device.split(':').map((hex) => Number.parseInt(hex, 16));
  const paths = descriptors(pid).map((fd) => `/proc/${pid}/fd/${fd}`);
  return paths.find((path) => {
    try {
      const { ino, dev } = statSync(path);
      return ino === mapping.inode && deviceMajor(dev) === major && deviceMinor(dev) === minor;
    } catch {
      return false;
    }
  });
}

/** True when the executable looks like QEMU's system emulator. */
function isQemu(pid: number): boolean {
  const executable = readLink(`/proc/${pid}/exe`) ?? commandLine(pid)[0] ?? '';
  return /(?:^|\/)(?:qemu-system-|qemu-kvm|kvm)[^/]*(?: \(deleted\))?$/.test(executable);
}

/** Every QEMU of this host that this process can see. */
export function qemuProcesses(): number[] {
  return processes().filter(isQemu);
}

/**
 * The process of the QEMU behind `qmp`: the one that its vCPU threads belong to. QEMU names them as its own PID
 * namespace does. Undefined when it cannot be told, for example when QEMU runs on another host.
 */
export async function findQemuProcess(qmp: QmpConnection): Promise<number | undefined> {
  const cpus = recordsOf(await qmp.execute('query-cpus-fast'), 'the list of vCPUs');
  const vcpuThreads = cpus.map((cpu) => Number(cpu['thread-id']));
  const candidates = qemuProcesses().filter((pid) => {
    const own = new Set(threads(pid).map((thread) => statusNumber(thread, 'NSpid', -1)));
    return vcpuThreads.every((thread) => own.has(thread));
  });
  return candidates.length === 1 ? candidates[0] : undefined;
}

/** The kernel's encoding of device numbers in `st_dev`. */
function deviceMajor(dev: number): number {
  return Math.floor(dev / 256) % 4096;
}

function deviceMinor(dev: number): number {
  return (dev % 256) + Math.floor(dev / 2 ** 20) * 256;
}

import { commandLine, processes, readLink, statusNumber, threads } from '../../system/proc.ts';
import { type QmpConnection, recordsOf } from './qmp.ts';

/** True when the executable looks like QEMU's system emulator. */
export function isQemu(pid: number): boolean {
  const executable = readLink(`/proc/${pid}/exe`) ?? commandLine(pid)[0] ?? '';
  return /(?:^|\/)(?:qemu-system-|qemu-kvm|kvm)[^/]*(?: \(deleted\))?$/.test(executable);
}

/** Every QEMU of this host that this process can see. */
export function qemuProcesses(): number[] {
  return processes().filter(isQemu);
}

/**
 * The process of the QEMU behind `qmp`: the one that its vCPU threads belong to, and that is known to be at the other
 * end. QEMU names threads as its own PID namespace does. Undefined when it cannot be told, for example when QEMU runs on another host.
 */
export async function findQemuProcess(qmp: QmpConnection): Promise<number | undefined> {
  const cpus = recordsOf(await qmp.execute('query-cpus-fast'), 'the list of vCPUs');
  const vcpuThreads = cpus.map((cpu) => Number(cpu['thread-id']));
  const candidates = qemuProcesses().filter((pid) => {
    const own = new Set(threads(pid).map((thread) => statusNumber(thread, 'NSpid', -1)));
    return vcpuThreads.every((thread) => own.has(thread));
  });
  // In different PID namespaces there are the same numbers.
  const known = await Promise.all(candidates.map((pid) => qmp.isServer(pid)));
  const found = candidates.filter((_pid, i) => known[i]);
  return found.length === 1 ? found[0] : undefined;
}

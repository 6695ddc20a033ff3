import { createHash } from 'node:crypto';
import { identityOf, lives } from '../../../system/proc.ts';
import { type QmpAddress, type QmpTransport, recordOf } from '../qmp.ts';
import { identityOf as identityOfSocket } from '../sharing/offer-path.ts';

/** One QEMU, not any other that is reached in the same way later. */
export interface VmIdentity {
  readonly uuid: string;
  /** Its process; null when that cannot be seen from here. */
  readonly pid: number | null;
  /** When that process started, in clock ticks since the system did. */
  readonly started: number | null;
  /** Its QMP socket, as the file system knows it; null behind libvirt. */
  readonly socket: string | null;
  /** Who the kernel says is at the other end of that socket; null when it does not. */
  readonly peer: number | null;
}

/** The QEMU behind `qmp`, which is at `monitor` and whose process is `pid`. */
export function identityOfVm(
  uuid: string,
  pid: number | undefined,
  qmp: QmpTransport,
  monitor: QmpAddress,
): VmIdentity {
  const found = pid === undefined ? undefined : identityOf(pid);
  return {
    uuid,
    pid: found?.pid ?? null,
    started: found?.started ?? null,
    socket: 'qmp' in monitor ? identityOfSocket(monitor.qmp) : null,
    peer: qmp.peer ?? null,
  };
}

/** What it is filed under. */
export function keyOf({ uuid, pid, started, socket }: VmIdentity): string {
  const known = pid === null ? [uuid, socket] : [uuid, pid, started];
  return createHash('sha256').update(JSON.stringify(known)).digest('hex').slice(0, 16);
}

/** Whether that QEMU has not ended, as far as can be told without talking to it. */
export function exists({ pid, started, socket }: VmIdentity, monitor: QmpAddress): boolean {
  if (pid !== null && started !== null) return lives({ pid, started });
  if (socket === null || !('qmp' in monitor)) return true;
  try {
    return identityOfSocket(monitor.qmp) === socket;
  } catch {
    return false;
  }
}

/** Whether `qmp` leads to that QEMU. */
export async function isAt(vm: VmIdentity, qmp: QmpTransport): Promise<boolean> {
  const { peer } = qmp;
  if (vm.peer !== null && peer !== undefined && peer !== vm.peer) return false;
  return (await uuidOf(qmp)) === vm.uuid;
}

/** As QEMU writes it. */
export async function uuidOf(qmp: QmpTransport): Promise<string> {
  return String(recordOf(await qmp.execute('query-uuid'), 'the UUID').UUID);
}

import { accessSync, constants, existsSync, readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { commandLine, readLink } from '../../system/proc.ts';
import { parseQemuArguments, type QemuArguments } from '../../system/qemu-arguments.ts';
import type { QmpAddress } from './open-qmp.ts';
import { qemuProcesses } from './process.ts';
import { identityOf, offerPath } from './sharing/offer-path.ts';

/** A VM of QEMU on this host, as its command line describes it. */
export interface FoundQemu extends Pick<QemuArguments, 'uuid' | 'vcpus' | 'memory' | 'accelerator'> {
  readonly pid: number;
  /** `-name`; `qemu-PID` when it has none. */
  readonly name: string;
  /** How to open it; undefined when there is no way. */
  readonly address: QmpAddress | undefined;
  /** Why it cannot be opened, or not now; undefined when it can. */
  readonly reason: string | undefined;
  /** What to do about that. */
  readonly remedy?: string;
}

/** Every QEMU of this host, found without talking to it. Those of other users are complete only for root. */
export function findQemuMachines(): FoundQemu[] {
  const machines = qemuProcesses();
  const busy = machines.length > 0 ? connectedSockets() : new Set<string>();
  return machines.flatMap((pid) => describe(pid, busy) ?? []);
}

function describe(pid: number, busy: ReadonlySet<string>): FoundQemu | undefined {
  const words = commandLine(pid);
  // A process that ends has no arguments any more.
  if (words.length === 0) return undefined;
  const {
    name = `qemu-${pid}`,
    uuid,
    vcpus,
    memory,
    accelerator,
    ...ways
  } = parseQemuArguments(words.slice(1));
  const way = /x86_64|kvm/.test(words[0]!)
    ? wayIn(pid, name, ways, busy)
    : { address: undefined, reason: `it is ${words[0]}, not an x86-64 machine` };
  return { pid, name, uuid, vcpus, memory, accelerator, ...way };
}

const ADD_SOCKET = 'Start QEMU with -qmp unix:PATH,server=on,wait=off.';

/** What there may be about a QMP socket, the best first. What cannot be opened is tried all the same when it is named. */
const WAYS = {
  /** Another process of kvmi shares its connection: where all of them meet, they know of each other. */
  shared: undefined,
  free: undefined,
  busy: {
    reason: 'is in use',
    remedy: 'Close the other client, or give QEMU a second -qmp unix:PATH,server=on,wait=off.',
  },
  denied: {
    reason: 'cannot be opened: permission denied',
    remedy: "Run kvmi as QEMU's user or as root.",
  },
} as const;

type Way = keyof typeof WAYS;

/** The best way in, or why there is none. */
function wayIn(
  pid: number,
  name: string,
  { qmp, libvirt }: Pick<QemuArguments, 'qmp' | 'libvirt'>,
  busy: ReadonlySet<string>,
): Pick<FoundQemu, 'address' | 'reason' | 'remedy'> {
  if (libvirt) return { address: { libvirt: name }, reason: undefined };
  const sockets = qmp.map((written) => {
    const path = absolute(pid, written);
    return { path, way: wayThrough(path, busy.has(path) || busy.has(written)) };
  });
  for (const [way, obstacle] of Object.entries(WAYS)) {
    const socket = sockets.find((candidate) => candidate.way === way);
    if (!socket) continue;
    const address = { qmp: socket.path };
    if (!obstacle) return { address, reason: undefined };
    return { address, reason: `its QMP socket ${socket.path} ${obstacle.reason}`, remedy: obstacle.remedy };
  }
  const reason =
    sockets.length > 0
      ? `its QMP socket ${sockets[0]!.path} is not there`
      : 'it has no QMP socket with a path';
  return { address: undefined, reason, remedy: ADD_SOCKET };
}

/** Undefined when there is no such socket here. */
function wayThrough(path: string, busy: boolean): Way | undefined {
  try {
    accessSync(path, constants.R_OK | constants.W_OK);
    if (!busy) return 'free';
    const offer = offerPath(identityOf(path));
    return offer !== undefined && existsSync(offer) ? 'shared' : 'busy';
  } catch (error) {
    return isDenied(error) ? 'denied' : undefined;
  }
}

function isDenied(error: unknown): boolean {
  return ['EACCES', 'EPERM'].includes(String((error as NodeJS.ErrnoException).code));
}

/** A path as QEMU wrote it, which may be relative to its working directory. */
function absolute(pid: number, path: string): string {
  const folder = readLink(`/proc/${pid}/cwd`);
  return folder === undefined ? path : resolve(folder, path);
}

const CONNECTED = '03';

/** Paths of Unix sockets that have a client: their server's end is connected under the same path. */
function connectedSockets(): Set<string> {
  const paths = new Set<string>();
  for (const line of readFileSync('/proc/net/unix', 'utf8').split('\n')) {
    const [, , , , , state, , path] = line.trim().split(/\s+/);
    if (state === CONNECTED && path) paths.add(path);
  }
  return paths;
}

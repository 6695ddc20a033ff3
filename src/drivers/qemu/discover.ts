import { accessSync, constants, readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { messageOf } from '../../error.ts';
import { commandLine, readLink } from '../../system/proc.ts';
import { parseQemuArguments, type QemuArguments } from '../../system/qemu-arguments.ts';
import type { QmpAddress } from './open-qmp.ts';
import { qemuProcesses } from './process.ts';

/** A VM of QEMU on this host, as its command line describes it. */
export interface FoundQemu extends Pick<QemuArguments, 'uuid' | 'vcpus' | 'memory' | 'accelerator'> {
  readonly pid: number;
  /** `-name`; `qemu-PID` when it has none. */
  readonly name: string;
  /** How to open it; undefined when it cannot be. */
  readonly address: QmpAddress | undefined;
  /** Why it cannot be opened, and what to do; undefined when it can. */
  readonly reason: string | undefined;
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

/** The first way in that can be used, or why none can. */
function wayIn(
  pid: number,
  name: string,
  { qmp, libvirt }: Pick<QemuArguments, 'qmp' | 'libvirt'>,
  busy: ReadonlySet<string>,
): Pick<FoundQemu, 'address' | 'reason'> {
  if (libvirt) return { address: { libvirt: name }, reason: undefined };
  const reasons: string[] = [];
  for (const written of qmp) {
    const path = absolute(pid, written);
    const reason = whyNotUsable(path, busy.has(path) || busy.has(written));
    if (reason === undefined) return { address: { qmp: path }, reason };
    reasons.push(reason);
  }
  if (reasons.length === 0) {
    reasons.push('it has no QMP socket with a path: start it with -qmp unix:PATH,server=on,wait=off');
  }
  return { address: undefined, reason: reasons.join('; ') };
}

function whyNotUsable(path: string, busy: boolean): string | undefined {
  if (busy) return `its QMP socket ${path} is in use: give it a second -qmp socket`;
  try {
    accessSync(path, constants.R_OK | constants.W_OK);
    return undefined;
  } catch (error) {
    return `its QMP socket cannot be opened: ${messageOf(error)}`;
  }
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

import { readdirSync, readFileSync, readlinkSync } from 'node:fs';

/** A task of the kernel that works for a user process (vhost, KVM's recovery of huge pages): not to be traced. */
const PF_USER_WORKER = 0x4000;
/** Fields of /proc/PID/stat after the name; the first one is the state. */
const STAT_FLAGS = 6;
const STAT_START_TIME = 19;
const STAT_THREADS = 17;
/** States of a process that has ended. */
const ENDED = /^[ZXx]$/;

export function readText(path: string): string | undefined {
  try {
    return readFileSync(path, 'latin1');
  } catch {
    return undefined;
  }
}

export function readLink(path: string): string | undefined {
  try {
    return readlinkSync(path);
  } catch {
    return undefined;
  }
}

function list(path: string): string[] {
  try {
    return readdirSync(path);
  } catch {
    return [];
  }
}

/** All processes, as far as they can be seen. */
export function processes(): number[] {
  return list('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number);
}

/** The arguments of a process, its program's name first; empty when it has ended or has none. */
export function commandLine(pid: number): string[] {
  const text = readText(`/proc/${pid}/cmdline`) ?? '';
  return Buffer.from(text, 'latin1').toString('utf8').split('\0').slice(0, -1);
}

/** The open descriptors of a process; none without the right to see them. */
export function descriptors(pid: number): number[] {
  return list(`/proc/${pid}/fd`).map(Number);
}

/** What /proc/PID/fd/FD points to. */
export function descriptorTarget(pid: number, fd: number): string | undefined {
  return readLink(`/proc/${pid}/fd/${fd}`);
}

/** Flags of a line of /proc/net/unix: __SO_ACCEPTCON. */
const LISTENING = '00010000';

/** Whether a process has a listening Unix socket that was bound to the absolute path `path`, as the kernel has it. */
export function listensOn(pid: number, path: string): boolean {
  const sockets = new Set(
    (readText(`/proc/${pid}/net/unix`) ?? '').split('\n').flatMap((line) => {
      const [, , , flags, , , inode, bound] = line.trim().split(/\s+/);
      return flags === LISTENING && bound === path ? [`socket:[${inode}]`] : [];
    }),
  );
  return sockets.size > 0 && descriptors(pid).some((fd) => sockets.has(descriptorTarget(pid, fd) ?? ''));
}

/** The KVM descriptors of a process. */
export interface KvmDescriptors {
  /** Virtual machines. */
  readonly vms: readonly number[];
  /** vCPUs: the number that KVM_CREATE_VCPU was given (not unique with several VMs), and the descriptor. */
  readonly vcpus: readonly { readonly id: number; readonly fd: number }[];
}

const VM = 'anon_inode:kvm-vm';
const VCPU = /^anon_inode:kvm-vcpu:(\d+)$/;

export function kvmDescriptors(pid: number): KvmDescriptors {
  const vms: number[] = [];
  const vcpus: { id: number; fd: number }[] = [];
  for (const fd of descriptors(pid)) {
    const target = descriptorTarget(pid, fd);
    if (target === VM) vms.push(fd);
    const vcpu = target === undefined ? undefined : VCPU.exec(target);
    if (vcpu) vcpus.push({ id: Number(vcpu[1]), fd });
  }
  return { vms: vms.sort((a, b) => a - b), vcpus: vcpus.sort((a, b) => a.fd - b.fd) };
}

/** The kind of KVM descriptor that `fd` is. */
export function kvmKind(pid: number, fd: number): 'system' | 'vm' | undefined {
  const target = descriptorTarget(pid, fd);
  if (target === VM) return 'vm';
  return target === '/dev/kvm' ? 'system' : undefined;
}

function stat(path: string): string[] | undefined {
  const text = readText(path);
  return text?.slice(text.lastIndexOf(')') + 2).split(' ');
}

export function threads(pid: number): number[] {
  return list(`/proc/${pid}/task`).map(Number);
}

/** The threads of a process that run its own code. */
export function userThreads(pid: number): number[] {
  return threads(pid).filter((tid) => {
    const fields = stat(`/proc/${pid}/task/${tid}/stat`);
    return fields !== undefined && (Number(fields[STAT_FLAGS]) & PF_USER_WORKER) === 0;
  });
}

/** The process that a thread belongs to. */
export function processOf(tid: number): number | undefined {
  return statusNumber(tid, 'Tgid');
}

function statusWords(pid: number | 'self', name: string): string[] {
  const status = readText(`/proc/${pid}/status`) ?? '';
  return new RegExp(`^${name}:[ \\t]+(.*)$`, 'm').exec(status)?.[1]?.split(/\s+/) ?? [];
}

/** A number of a line of /proc/PID/status; counted from the end when `index` is negative. */
export function statusNumber(pid: number, name: string, index = 0): number | undefined {
  const word = statusWords(pid, name).at(index);
  return word === undefined ? undefined : Number(word);
}

/** The capabilities in effect of this process, one a bit (capability.h). */
export function ownCapabilities(): bigint {
  return BigInt(`0x${statusWords('self', 'CapEff')[0] ?? '0'}`);
}

/** The process that traces a thread; undefined when none does. */
export function tracerOf(tid: number): number | undefined {
  return statusNumber(tid, 'TracerPid') || undefined;
}

/** Clock ticks of /proc, a second: the same on every x86-64 Linux. */
const TICKS_PER_SECOND = 100;

/** When a process started, in ms of CLOCK_MONOTONIC (but for time spent suspended). */
export function startTimeOf(pid: number): number {
  const ticks = Number(stat(`/proc/${pid}/stat`)?.[STAT_START_TIME] ?? 0);
  return (ticks * 1000) / TICKS_PER_SECOND;
}

/** One process, not any other that gets its pid later. */
export interface ProcessIdentity {
  readonly pid: number;
  /** Clock ticks since the system started. */
  readonly started: number;
}

/** Undefined when the process has ended with all its threads, whether or not its parent has waited for it. */
export function identityOf(pid: number): ProcessIdentity | undefined {
  const fields = stat(`/proc/${pid}/stat`);
  if (fields === undefined || (ENDED.test(fields[0]!) && Number(fields[STAT_THREADS]) <= 1)) return undefined;
  return { pid, started: Number(fields[STAT_START_TIME]) };
}

/** Whether a process has not ended. */
export function lives({ pid, started }: ProcessIdentity): boolean {
  return identityOf(pid)?.started === started;
}

/** One line of /proc/PID/maps. */
export interface Mapping {
  readonly start: number;
  readonly end: number;
  /** `rw-p`, `r--s`: the last one says whether it is private or shared. */
  readonly permissions: string;
  /** Where the mapping starts in its file. */
  readonly offset: number;
  /** `major:minor` in hexadecimal, and the inode of the file; inode 0 for anonymous memory. */
  readonly device: string;
  readonly inode: number;
  readonly name: string;
}

const MAPPING = /^([0-9a-f]+)-([0-9a-f]+) (\S+) ([0-9a-f]+) (\S+) (\d+)\s*(.*)$/;

/** The mappings of a process; none without the right to see them. */
export function mappings(pid: number): Mapping[] {
  return parseMappings(readText(`/proc/${pid}/maps`) ?? '');
}

export function parseMappings(text: string): Mapping[] {
  return text.split('\n').flatMap((line) => {
    const match = MAPPING.exec(line);
    if (!match) return [];
    const [start, end, offset] = [match[1]!, match[2]!, match[4]!].map((hex) => Number.parseInt(hex, 16));
    return [
      {
        start: start!,
        end: end!,
        permissions: match[3]!,
        offset: offset!,
        device: match[5]!,
        inode: Number(match[6]),
        name: match[7]!,
      },
    ];
  });
}

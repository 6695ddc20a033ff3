import { readdirSync, readFileSync, readlinkSync } from 'node:fs';

/** A task of the kernel that works for a user process (vhost, KVM's recovery of huge pages): not to be traced. */
const PF_USER_WORKER = 0x4000;
/** Fields of /proc/PID/stat after the name; the first one is the state. */
const STAT_FLAGS = 6;
const STAT_START_TIME = 19;

export function readText(path: string): string | undefined {
  try {
    return readFileSync(path, 'latin1');
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

/** What /proc/PID/fd/FD points to. */
export function descriptorTarget(pid: number, fd: number): string | undefined {
  try {
    return readlinkSync(`/proc/${pid}/fd/${fd}`);
  } catch {
    return undefined;
  }
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
  for (const name of list(`/proc/${pid}/fd`)) {
    const target = descriptorTarget(pid, Number(name));
    if (target === VM) vms.push(Number(name));
    const vcpu = target === undefined ? undefined : VCPU.exec(target);
    if (vcpu) vcpus.push({ id: Number(vcpu[1]), fd: Number(name) });
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

/** The threads of a process that run its own code. */
export function userThreads(pid: number): number[] {
  return list(`/proc/${pid}/task`)
    .map(Number)
    .filter((tid) => {
      const fields = stat(`/proc/${pid}/task/${tid}/stat`);
      return fields !== undefined && (Number(fields[STAT_FLAGS]) & PF_USER_WORKER) === 0;
    });
}

/** The process that a thread belongs to. */
export function processOf(tid: number): number | undefined {
  return statusNumber(tid, 'Tgid');
}

/** One numeric line of /proc/PID/status. */
export function statusNumber(pid: number, name: string): number | undefined {
  const value = new RegExp(`^${name}:\\s+(\\d+)`, 'm').exec(readText(`/proc/${pid}/status`) ?? '')?.[1];
  return value === undefined ? undefined : Number(value);
}

/** Clock ticks of /proc, a second: the same on every x86-64 Linux. */
const TICKS_PER_SECOND = 100;

/** When a process started, in ms of CLOCK_MONOTONIC (but for time spent suspended). */
export function startTimeOf(pid: number): number {
  const ticks = Number(stat(`/proc/${pid}/stat`)?.[STAT_START_TIME] ?? 0);
  return (ticks * 1000) / TICKS_PER_SECOND;
}

/** One line of /proc/PID/maps. */
export interface Mapping {
  readonly start: number;
  readonly end: number;
  readonly permissions: string;
  readonly name: string;
}

const MAPPING = /^([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \d+\s*(.*)$/;

export function mappings(pid: number): Mapping[] {
  return (readText(`/proc/${pid}/maps`) ?? '').split('\n').flatMap((line) => {
    const match = MAPPING.exec(line);
    if (!match) return [];
    const [, start, end, permissions, name] = match as unknown as [string, string, string, string, string];
    return [{ start: Number.parseInt(start, 16), end: Number.parseInt(end, 16), permissions, name }];
  });
}

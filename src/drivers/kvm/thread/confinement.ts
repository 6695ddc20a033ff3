import { putU32, putU64 } from '../../../abi/bytes.ts';
import { ERRNO } from '../../../abi/errno.ts';
import { KVM } from '../../../abi/kvm.ts';
import { AUDIT_ARCH_X86_64, PTRACE, SECCOMP, SIGNAL, SYS } from '../../../abi/linux.ts';
import { runClassicBpf } from '../../../system/classic-bpf.ts';
import { libc, type Word } from '../../../system/libc.ts';
import { statusNumber } from '../../../system/proc.ts';
import type { Tracee } from './tracee.ts';

/* struct seccomp_data. */
const DATA_SIZE = 64;
const ARCH = 4;
const ARGUMENTS = 16;
const SIGMASK_SIZE = 8;
const SIG_SETMASK = 2;
/** BPF_MAXINSNS instructions of eight bytes. */
const MAX_PROGRAM_SIZE = 4096 * 8;
/** More than the kernel lets a thread stack up (MAX_INSNS_PER_PATH). */
const MAX_FILTERS = 32_768;

/** What the agent does when its tracer was killed, to disarm and to return to the VMM. */
function lastCalls(tid: number): readonly (readonly Word[])[] {
  const vcpu = 0;
  const vm = 0;
  return [
    [SYS.ioctl, vcpu, KVM.SET_MSRS],
    [SYS.ioctl, vm, KVM.X86_SET_MSR_FILTER],
    [SYS.ioctl, vcpu, KVM.SET_GUEST_DEBUG],
    [SYS.nanosleep, 0, 0],
    [SYS.rt_sigprocmask, SIG_SETMASK, 0, 0, SIGMASK_SIZE],
    [SYS.tgkill, tid, tid, SIGNAL.SIGURG],
  ];
}

function seccompData([nr, ...args]: readonly Word[]): Uint8Array {
  const data = new Uint8Array(DATA_SIZE);
  putU32(data, 0, Number(nr));
  putU32(data, ARCH, AUDIT_ARCH_X86_64);
  args.forEach((argument, i) => {
    putU64(data, ARGUMENTS + i * 8, BigInt(argument));
  });
  return data;
}

function allowed(program: Uint8Array, call: readonly Word[]): boolean {
  const action = runClassicBpf(program, seccompData(call));
  return action === SECCOMP.RET_ALLOW || action === SECCOMP.RET_LOG;
}

/** The seccomp filters of a stopped thread; undefined when the kernel does not give them. */
function filtersOf(tid: number): Uint8Array[] | undefined {
  const filters: Uint8Array[] = [];
  const bytes = new Uint8Array(MAX_PROGRAM_SIZE);
  while (filters.length < MAX_FILTERS) {
    const count = libc().ptraceBytes(PTRACE.SECCOMP_GET_FILTER, tid, filters.length, bytes);
    if (count < 0) return libc().errno() === ERRNO.ENOENT ? filters : undefined;
    filters.push(bytes.slice(0, count * 8));
  }
  return undefined;
}

/** Whether a thread of a program under `kvmi run` has no filters but that one and those that this process has, too. */
function hasOnlyOurs(tid: number): boolean {
  const own = statusNumber(process.pid, 'Seccomp_filters');
  return own !== undefined && statusNumber(tid, 'Seccomp_filters') === own + 1;
}

/**
 * Whether the VMM forbids a thread what the agent has to do there when it is left alone: the kernel would kill the VMM
 * for it. While the thread is traced its filters can be lifted, and only so long.
 *
 * @param underRun the VMM runs under `kvmi run` of this process.
 */
export function isConfined(tracee: Tracee, underRun: boolean): boolean {
  if (statusNumber(tracee.tid, 'Seccomp') !== SECCOMP.MODE_FILTER) return false;
  if (underRun && hasOnlyOurs(tracee.tid)) return false;
  const filters = filtersOf(tracee.tid);
  if (!filters) return true;
  return lastCalls(tracee.tid).some((call) => filters.some((filter) => !allowed(filter, call)));
}

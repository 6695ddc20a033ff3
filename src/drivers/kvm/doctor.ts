import { accessSync, closeSync, constants, openSync } from 'node:fs';
import { release } from 'node:os';
import { getU64 } from '../../abi/bytes.ts';
import { errnoName } from '../../abi/errno.ts';
import { KVM, KVM_CAP } from '../../abi/kvm.ts';
import { SECCOMP, SYS, UFFD } from '../../abi/linux.ts';
import { libc } from '../../system/libc.ts';
import { ownCapabilities } from '../../system/proc.ts';
import { kvmFlavour } from './flavour.ts';
import { kernel } from './thread/vmm.ts';

/** One thing that is there or not. */
export interface DoctorRow {
  readonly check: string;
  readonly ok: boolean;
  /** What was found. */
  readonly found: string;
  /** What it is good for. */
  readonly enables: string;
  /** How to get it; empty when it is there. */
  readonly hint: string;
}

/** Whether it is there, what was found, and how to get it when that depends on what was found. */
type Finding = readonly [ok: boolean, found: string, hint?: string];

interface Check {
  readonly check: string;
  readonly enables: string;
  readonly hint: string;
  examine(): Finding;
}

const O_RDWR = 2;
const O_CLOEXEC = 0x80000;
/** Size of struct seccomp_notif_sizes. */
const NOTIF_SIZES_SIZE = 6;
const CAP_SYS_ADMIN = 1n << 21n;
const FLAVOURS = {
  vmx: 'Intel VMX',
  svm: 'AMD SVM',
  pvm: 'PVM: guests without hardware virtualization; real and protected mode are emulated, int3 cannot be trapped',
  unknown: 'no vendor module that is known',
} as const;

function mayAdminister(): boolean {
  return (ownCapabilities() & CAP_SYS_ADMIN) !== 0n;
}

function device(): Finding {
  try {
    // Opened, because a container may forbid what the file's mode allows.
    closeSync(openSync('/dev/kvm', 'r+'));
    return [true, FLAVOURS[kvmFlavour()]];
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [false, 'there is none'];
    const hint = 'Add the user to the group that owns it: sudo usermod -aG kvm USER, then log in again.';
    return [false, 'it may not be opened', hint];
  }
}

function ffi(): Finding {
  try {
    libc();
    return [true, 'koffi'];
  } catch (error) {
    return [false, (error as Error).message];
  }
}

/** The system calls that take descriptors of another process, tried on this one. */
function descriptors(): Finding {
  const { syscall, close } = libc();
  const pidfd = Number(syscall(SYS.pidfd_open, process.pid, 0, 0, 0, 0, 0));
  if (pidfd < 0) return [false, `pidfd_open: ${errnoName(libc().errno())}`];
  const taken = Number(syscall(SYS.pidfd_getfd, pidfd, pidfd, 0, 0, 0, 0));
  const why = errnoName(libc().errno());
  close(pidfd);
  if (taken < 0) return [false, `pidfd_getfd: ${why}`];
  const compared = Number(syscall(SYS.kcmp, process.pid, process.pid, 0, taken, taken, 0));
  close(taken);
  return compared === 0 ? [true, 'pidfd_getfd, kcmp'] : [false, `kcmp: ${errnoName(libc().errno())}`];
}

function extension(capability: number): Finding {
  const lib = libc();
  const fd = lib.open('/dev/kvm', O_RDWR, 0);
  if (fd < 0) return [false, `not known: /dev/kvm: ${errnoName(lib.errno())}`, 'See /dev/kvm.'];
  const value = lib.ioctl(fd, KVM.CHECK_EXTENSION, capability);
  lib.close(fd);
  return [value > 0, value > 0 ? 'yes' : 'no'];
}

function typeInformation(): Finding {
  try {
    accessSync('/sys/kernel/btf/vmlinux', constants.R_OK);
    return [true, '/sys/kernel/btf/vmlinux'];
  } catch {
    return [false, 'the kernel carries no type information'];
  }
}

function kernelReading(): Finding {
  const view = kernel();
  return typeof view === 'string' ? [false, view] : [true, `Linux ${release()}`];
}

function userfault(): Finding {
  const fd = Number(libc().syscall(SYS.userfaultfd, O_CLOEXEC, 0, 0, 0, 0, 0));
  if (fd < 0) return [false, errnoName(libc().errno())];
  const api = new Uint8Array(24);
  api[0] = UFFD.API;
  const asked = libc().ioctlBytes(fd, UFFD.IOCTL_API, api);
  libc().close(fd);
  const protects = asked === 0 && (getU64(api, 8) & UFFD.FEATURE_PAGEFAULT_FLAG_WP) !== 0n;
  return [protects, protects ? 'with write protection' : 'without write protection'];
}

function notification(): Finding {
  const sizes = new Uint8Array(NOTIF_SIZES_SIZE);
  const result = libc().syscall(SYS.seccomp, SECCOMP.GET_NOTIF_SIZES, 0, libc().addressOf(sizes), 0, 0, 0);
  if (Number(result) !== 0) return [false, errnoName(libc().errno())];
  const [major = 0, minor = 0] = release().split('.').map(Number);
  const fast = major > 6 || (major === 6 && minor >= 6);
  return [true, fast ? 'with synchronous wake-up' : 'without synchronous wake-up (Linux 6.6)'];
}

const CHECKS: readonly Check[] = [
  {
    check: 'koffi',
    enables: 'everything below',
    hint: 'npm install koffi (an optional dependency; Linux x86-64 with glibc)',
    examine: ffi,
  },
  {
    check: '/dev/kvm',
    enables: 'virtual machines on KVM',
    hint: 'Load kvm_intel or kvm_amd, with virtualization turned on in the firmware; in a container pass --device /dev/kvm.',
    examine: device,
  },
  {
    check: 'pidfd',
    enables: 'kvmi run, kvm:PID: descriptors of a VMM',
    hint: 'Needs Linux 5.6 with CONFIG_KCMP; in a container --cap-add SYS_PTRACE.',
    examine: descriptors,
  },
  {
    check: 'seccomp',
    enables: 'kvmi run: the introspection requests of an unmodified VMM',
    hint: 'Needs Linux 5.5 with CONFIG_SECCOMP_FILTER.',
    examine: notification,
  },
  {
    check: 'confined',
    enables: 'kvm:PID of Firecracker and others that forbid themselves system calls by seccomp',
    hint: 'Needs CAP_SYS_ADMIN and CONFIG_CHECKPOINT_RESTORE.',
    examine: () => [mayAdminister(), mayAdminister() ? 'CAP_SYS_ADMIN' : 'no CAP_SYS_ADMIN'],
  },
  {
    check: 'BTF',
    enables: 'what BPF is needed for',
    hint: 'Needs a kernel with CONFIG_DEBUG_INFO_BTF, as distributions build it.',
    examine: typeInformation,
  },
  {
    check: 'BPF',
    enables:
      'memory slots and vCPU threads as the kernel has them; without it kvmi run learns them from the requests of the VMM, and kvm:PID guesses them while the VMM is stopped',
    hint: 'Needs BTF, Linux 5.16, and root or CAP_BPF and CAP_PERFMON (in a container --cap-add BPF --cap-add PERFMON).',
    examine: kernelReading,
  },
  {
    check: 'userfaultfd',
    enables: 'events for writes to pages',
    hint: 'Needs Linux 5.19 with CONFIG_USERFAULTFD, and root or vm.unprivileged_userfaultfd=1.',
    examine: userfault,
  },
  {
    check: 'SYNC_REGS',
    enables: 'registers without a system call of their own',
    hint: 'Needs Linux 4.17 (KVM_CAP_SYNC_REGS).',
    examine: () => extension(KVM_CAP.SYNC_REGS),
  },
  {
    check: 'MSR exits',
    enables: 'events for writes to MSRs',
    hint: 'Needs Linux 5.10 (KVM_CAP_X86_USER_SPACE_MSR).',
    examine: () => extension(KVM_CAP.X86_USER_SPACE_MSR),
  },
];

/** What this host offers for VMs on KVM, what each thing is good for, and how to get what is missing. */
export function doctorKvm(): DoctorRow[] {
  let usable = true;
  return CHECKS.map(({ check, enables, hint, examine }) => {
    const [ok, found, special]: Finding = usable ? examine() : [false, 'not examined: koffi is missing'];
    if (check === 'koffi') usable = ok;
    return { check, ok, found, enables, hint: ok ? '' : (special ?? hint) };
  });
}

import { accessSync, constants } from 'node:fs';
import { release } from 'node:os';
import { getU64 } from '../../abi/bytes.ts';
import { KVM, KVM_CAP } from '../../abi/kvm.ts';
import { SECCOMP, SYS, UFFD } from '../../abi/linux.ts';
import { kvmFlavour } from './flavour.ts';
import { errnoName, libc } from './libc.ts';
import { readText } from './proc.ts';
import { kernel } from './vmm.ts';

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

type Finding = readonly [ok: boolean, found: string];

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
const CAP_SYS_PTRACE = 19n;
const CAP_SYS_ADMIN = 21n;
const FLAVOURS = {
  vmx: 'Intel VMX',
  svm: 'AMD SVM',
  pvm: 'PVM: guests without hardware virtualization; real and protected mode are emulated, int3 cannot be trapped',
  unknown: 'no vendor module that is known',
} as const;

function effectiveCapability(bit: bigint): boolean {
  const effective = /^CapEff:\s+([0-9a-f]+)/m.exec(readText('/proc/self/status') ?? '')?.[1];
  return effective !== undefined && ((BigInt(`0x${effective}`) >> bit) & 1n) === 1n;
}

function device(): Finding {
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK);
    return [true, FLAVOURS[kvmFlavour()]];
  } catch (error) {
    return [
      false,
      (error as NodeJS.ErrnoException).code === 'ENOENT'
        ? 'there is no /dev/kvm'
        : '/dev/kvm may not be opened',
    ];
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

function tracing(): Finding {
  const scope = readText('/proc/sys/kernel/yama/ptrace_scope')?.trim();
  if (effectiveCapability(CAP_SYS_PTRACE)) {
    return [
      scope !== '3',
      scope === '3' ? 'Yama forbids tracing altogether (ptrace_scope 3)' : 'CAP_SYS_PTRACE',
    ];
  }
  if (scope === undefined || scope === '0') return [true, 'processes of the same user'];
  return [false, `no CAP_SYS_PTRACE, and Yama restricts tracing (ptrace_scope ${scope})`];
}

function extension(capability: number): Finding {
  const lib = libc();
  const fd = lib.open('/dev/kvm', O_RDWR, 0);
  if (fd < 0) return [false, `/dev/kvm: ${errnoName(lib.errno())}`];
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
  return Number(result) === 0 ? [true, 'yes'] : [false, errnoName(libc().errno())];
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
    hint: 'Load kvm_intel or kvm_amd, and add the user to the group kvm; in a container pass --device /dev/kvm.',
    examine: device,
  },
  {
    check: 'tracing',
    enables: 'kvmi attach; kvmi run',
    hint: 'Run as root, or with CAP_SYS_PTRACE (in a container: --cap-add SYS_PTRACE), or set kernel.yama.ptrace_scope=0.',
    examine: tracing,
  },
  {
    check: 'VMMs with a seccomp filter',
    enables: 'attaching to Firecracker and others that forbid themselves system calls',
    hint: 'Needs CAP_SYS_ADMIN and CONFIG_CHECKPOINT_RESTORE.',
    examine: () => [
      effectiveCapability(CAP_SYS_ADMIN),
      effectiveCapability(CAP_SYS_ADMIN) ? 'CAP_SYS_ADMIN' : 'no CAP_SYS_ADMIN',
    ],
  },
  {
    check: 'seccomp notification',
    enables: 'kvmi run: the introspection ioctls of an unmodified VMM',
    hint: 'Needs Linux 5.5 with CONFIG_SECCOMP_FILTER; 6.6 makes it faster.',
    examine: notification,
  },
  {
    check: 'BTF',
    enables: 'finding the memory of a VM whose VMM runs already',
    hint: 'Needs a kernel with CONFIG_DEBUG_INFO_BTF, as distributions build it.',
    examine: typeInformation,
  },
  {
    check: 'BPF',
    enables: 'finding the memory of a VM whose VMM runs already, and the threads of its vCPUs',
    hint: 'Needs Linux 5.16 and root, or CAP_BPF and CAP_PERFMON.',
    examine: kernelReading,
  },
  {
    check: 'userfaultfd',
    enables: 'events for writes to pages',
    hint: 'Needs Linux 5.19 with CONFIG_USERFAULTFD, and root or vm.unprivileged_userfaultfd=1.',
    examine: userfault,
  },
  {
    check: 'KVM_CAP_SYNC_REGS',
    enables: 'registers without a system call of their own',
    hint: 'Needs Linux 4.17.',
    examine: () => extension(KVM_CAP.SYNC_REGS),
  },
  {
    check: 'KVM_CAP_X86_USER_SPACE_MSR',
    enables: 'events for writes to MSRs',
    hint: 'Needs Linux 5.10.',
    examine: () => extension(KVM_CAP.X86_USER_SPACE_MSR),
  },
];

/** What this host offers for VMs on KVM, what each thing is good for, and how to get what is missing. */
export function doctorKvm(): DoctorRow[] {
  let usable = true;
  return CHECKS.map(({ check, enables, hint, examine }) => {
    const [ok, found] = usable ? examine() : [false, 'not examined: koffi is missing'];
    if (check === 'koffi') usable = ok;
    return { check, ok, found, enables, hint: ok ? '' : hint };
  });
}

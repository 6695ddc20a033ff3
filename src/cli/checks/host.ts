import { existsSync } from 'node:fs';
import { ownCapabilities, readText } from '../../system/proc.ts';
import { type Check, type Finding, ok } from './check.ts';

/** The least version of Node.js. */
const NODE: readonly [major: number, minor: number] = [20, 19];

export function nodeFinding(version: string): Finding {
  const [major = 0, minor = 0] = version.split('.').map(Number);
  const isNew = major > NODE[0] || (major === NODE[0] && minor >= NODE[1]);
  if (isNew) return ok(`Node.js ${version}`);
  return {
    severity: 'error',
    found: `Node.js ${version}`,
    remedy: `Install Node.js ${NODE.join('.')} or later.`,
  };
}

/** What decides whether this process may trace others. */
export interface TraceRights {
  readonly uid: number;
  /** CapEff of /proc/self/status. */
  readonly capabilities: bigint;
  /** kernel.yama.ptrace_scope; undefined without Yama. */
  readonly yama: number | undefined;
}

const CAP_SYS_PTRACE = 1n << 19n;

const SET_CAPABILITY =
  'Run as root (in a container with --cap-add SYS_PTRACE), or: sudo setcap cap_sys_ptrace+ep "$(readlink -f "$(command -v node)")"';

export function traceFinding({ uid, capabilities, yama = 0 }: TraceRights): Finding {
  const capable = (capabilities & CAP_SYS_PTRACE) !== 0n;
  const who = uid === 0 ? 'root' : `user ${uid}`;
  if (yama === 3) {
    return {
      severity: 'warning',
      found: `kernel.yama.ptrace_scope is 3: nobody may trace`,
      remedy:
        'It can only be changed at boot: remove kernel.yama.ptrace_scope=3 from /etc/sysctl.d and reboot.',
    };
  }
  if (capable) return ok(`${who} with CAP_SYS_PTRACE: every process`);
  if (yama === 0) return { severity: 'info', found: `${who}: own processes only`, remedy: SET_CAPABILITY };
  return {
    severity: 'warning',
    found: `${who} without CAP_SYS_PTRACE, kernel.yama.ptrace_scope is ${yama}: no process but children`,
    remedy: yama === 1 ? `sudo sysctl kernel.yama.ptrace_scope=0. Or: ${SET_CAPABILITY}` : SET_CAPABILITY,
  };
}

function traceRights(): TraceRights {
  const yama = readText('/proc/sys/kernel/yama/ptrace_scope');
  return {
    uid: process.getuid?.() ?? 0,
    capabilities: ownCapabilities(),
    yama: yama === undefined ? undefined : Number(yama),
  };
}

async function koffiFinding(): Promise<Finding> {
  try {
    const koffi = (await import('koffi')) as { readonly default?: { readonly version?: string } };
    return ok(`koffi ${koffi.default?.version ?? ''}`.trimEnd());
  } catch {
    return {
      severity: 'info',
      found: 'koffi is not installed or does not fit this platform',
      remedy: 'npm install koffi',
    };
  }
}

const isLinux = process.platform === 'linux';

/** What every driver needs, or profits from. */
export const HOST_CHECKS: readonly Check[] = [
  {
    name: 'node',
    enables: 'everything',
    examine: () => nodeFinding(process.versions.node),
  },
  {
    name: 'platform',
    enables: 'VMs of this host; elsewhere only the embedded machine',
    examine: () =>
      isLinux
        ? ok('Linux')
        : { severity: 'warning', found: process.platform, remedy: 'Run kvmi on a Linux host.' },
  },
  {
    name: 'trace',
    enables: 'kvm:PID, and fast guest memory of QEMU; kvmi run traces only what it has started',
    examine: () =>
      isLinux && existsSync('/proc/self/status')
        ? traceFinding(traceRights())
        : { severity: 'warning', found: 'there is no /proc', remedy: 'Mount it: mount -t proc proc /proc' },
  },
  { name: 'koffi', enables: 'guest memory without copies, and stock KVM', examine: koffiFinding },
];

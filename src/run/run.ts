import { ERRNO } from '../abi/errno.ts';
import { KVM_CHECK_EXTENSION } from '../abi/ioctl.ts';
import { SIGNAL } from '../abi/linux.ts';
import { attempt } from '../awaitable.ts';
import { kernelMemslots, type MachineSafety, machineOf } from '../drivers/kvm/attach.ts';
import type { VmFile } from '../drivers/kvm/slots/vm-file.ts';
import { kernel } from '../drivers/kvm/thread/vmm.ts';
import { messageOf } from '../error.ts';
import { type Log, SILENT } from '../host/log.ts';
import { GuardProcess } from '../system/guard-process.ts';
import { libc } from '../system/libc.ts';
import { endOf } from '../system/process-end.ts';
import { keepStderrBlocking } from './blocking-stderr.ts';
import { InterceptedMemslots, MEMORY_REQUESTS } from './intercepted-slots.ts';
import { abandon, type Launched, launch } from './launch.ts';
import { serveListener } from './listener.ts';
import {
  capabilitiesOf,
  INTROSPECTION_REQUESTS,
  type InterceptedIoctl,
  type RunDialect,
} from './requests.ts';
import { notificationFilter } from './seccomp-filter.ts';
import { Supervisor } from './supervisor.ts';

export interface RunOptions extends MachineSafety {
  /** What the program speaks. Default `auto`: v9 or v12, by the numbers of its requests. */
  readonly dialect?: RunDialect;
  /** False plays a kernel whose module parameter kvm.introspection is off. Default true. */
  readonly enabled?: boolean;
  readonly log?: Log;
}

const ANSWERING = new URL('./listener-guard-main.js', import.meta.url);
const SIGNALLED = 128;

/**
 * Runs an unmodified program whose KVM introspection ioctls are answered here.
 *
 * Signals that a terminal sends to the whole group are left to the program; SIGTERM and SIGHUP are passed on.
 *
 * @returns the program's exit code, or 128 plus the signal that ended it, once no process that it left behind
 * could make such a request any more.
 * @throws KvmiError when it cannot be started: E_NOT_FOUND, E_PERMISSION, E_SYSTEM.
 */
export async function runUnderKvmi(argv: readonly string[], options: RunOptions = {}): Promise<number> {
  const { dialect = 'auto', log = SILENT } = options;
  const slots = interceptedSlots(log);
  const requests = [...INTROSPECTION_REQUESTS, ...(slots ? MEMORY_REQUESTS : [])];
  const filter = notificationFilter(requests, KVM_CHECK_EXTENSION, capabilitiesOf(dialect));
  const launched = launch(argv, filter);
  const restoreStderr = keepStderrBlocking();
  const restoreSignals = passSignals(launched.pid);
  let guard: GuardProcess | undefined;
  try {
    guard = slots && (await guardOf(launched));
    return await supervise(launched, slots, options);
  } finally {
    guard?.stop();
    restoreSignals();
    restoreStderr();
  }
}

/** Starts the program and serves it until the end. Returns its exit code. */
async function supervise(
  { pid, listener, start }: Launched,
  slots: InterceptedMemslots | undefined,
  options: RunOptions,
): Promise<number> {
  const { dialect = 'auto', enabled = true, log = SILENT } = options;
  const memslots = slots ? (vm: VmFile) => slots.memslots(vm) : kernelMemslots;
  const machine = (vm: VmFile) => machineOf(vm, { ...options, memslots });
  const supervisor = new Supervisor({ dialect, enabled, log, machine });
  const failed = ({ request, tid }: InterceptedIoctl, error: unknown): number => {
    log.error(`ioctl 0x${request.toString(16)} of thread ${tid}: ${messageOf(error)}`);
    return -ERRNO.EIO;
  };
  const listenerClosed = serveListener(listener, (ioctl) =>
    slots?.observe(ioctl)
      ? undefined
      : attempt<number | undefined>(
          () => supervisor.answer(ioctl),
          (error) => failed(ioctl, error),
        ),
  );
  start();
  try {
    const status = await endOf(pid);
    supervisor.checkLiveness();
    await listenerClosed;
    return exitCode(status);
  } finally {
    await supervisor.close();
  }
}

/**
 * Where the kernel can be asked for the memory slots of a VM, the program's memory requests need not be intercepted:
 * undefined then.
 */
function interceptedSlots(log: Log): InterceptedMemslots | undefined {
  const view = kernel();
  if (typeof view !== 'string') return undefined;
  log.info(`the memory slots of VMs are learned from the requests that make them: ${view}`);
  return new InterceptedMemslots();
}

/** Memory requests that nobody answers fail in the VMM, which may not survive that. */
async function guardOf({ pid, listener }: Launched): Promise<GuardProcess> {
  try {
    return await GuardProcess.start(ANSWERING, [], listener);
  } catch (error) {
    abandon(pid);
    throw error;
  }
}

/** Leaves the program's signals to the program. Returns the function that takes that back. */
function passSignals(pid: number): () => void {
  const handlers: [NodeJS.Signals, () => void][] = [
    ['SIGINT', () => {}],
    ['SIGQUIT', () => {}],
    ['SIGTERM', () => libc().kill(pid, SIGNAL.SIGTERM)],
    ['SIGHUP', () => libc().kill(pid, SIGNAL.SIGHUP)],
  ];
  for (const [signal, handler] of handlers) process.on(signal, handler);
  return () => {
    for (const [signal, handler] of handlers) process.off(signal, handler);
  };
}

/** As a shell has it. */
function exitCode(status: number): number {
  const signal = status & 0x7f;
  return signal === 0 ? (status >> 8) & 0xff : SIGNALLED + signal;
}

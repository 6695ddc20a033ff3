import { getS32 } from '../../abi/bytes.ts';
import { KVM_CHECK_EXTENSION } from '../../abi/ioctl.ts';
import { seccompNotification, seccompResponse } from '../../abi/kvm.ts';
import { POLL, SECCOMP, SIGNAL, SYS, WAIT } from '../../abi/linux.ts';
import { deferred } from '../../awaitable.ts';
import { messageOf } from '../../error.ts';
import { type Log, SILENT } from '../../host/log.ts';
import { kernelMemslots, type MachineSafety, machineOf } from './attach.ts';
import { keepStderrBlocking } from './blocking-stderr.ts';
import { InterceptedMemslots, MEMORY_REQUESTS } from './intercepted-slots.ts';
import { launch } from './launch.ts';
import { check, libc } from './libc.ts';
import { pump } from './pump.ts';
import { capabilitiesOf, INTROSPECTION_REQUESTS, type RunDialect, readNotification } from './requests.ts';
import { notificationFilter } from './seccomp-filter.ts';
import { Supervisor } from './supervisor.ts';
import type { VmFile } from './vm-file.ts';
import { kernel } from './vmm.ts';

export interface RunOptions extends MachineSafety {
  /** What the program speaks. Default `auto`: v9 or v12, by the numbers of its requests. */
  readonly dialect?: RunDialect;
  /** False plays a kernel whose module parameter kvm.introspection is off. Default true. */
  readonly enabled?: boolean;
  readonly log?: Log;
}

const SIGNALLED = 128;
const EIO = 5;

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
  const { dialect = 'auto', enabled = true, log = SILENT } = options;
  const slots = interceptedSlots(log);
  const requests = [...INTROSPECTION_REQUESTS, ...(slots ? MEMORY_REQUESTS : [])];
  const filter = notificationFilter(requests, KVM_CHECK_EXTENSION, capabilitiesOf(dialect));
  const { pid, listener } = launch(argv, filter);
  const restoreStderr = keepStderrBlocking();
  const memslots = slots ? (vm: VmFile) => slots.memslots(vm) : kernelMemslots;
  const machine = (vm: VmFile) => machineOf(vm, { ...options, memslots });
  const supervisor = new Supervisor({ dialect, enabled, log, machine });
  const restoreSignals = passSignals(pid);
  const listenerClosed = serveNotifications(listener, supervisor, slots, log);
  try {
    const code = await exitOf(pid, () => supervisor.checkLiveness());
    await listenerClosed;
    return code;
  } finally {
    restoreSignals();
    await supervisor.close();
    restoreStderr();
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

/** Waits for a child that was not started by child_process. */
function exitOf(pid: number, exited: () => void): Promise<number> {
  const { promise, resolve } = deferred<number>();
  const pidfd = check(Number(libc().syscall(SYS.pidfd_open, pid, 0, 0, 0, 0, 0)), 'pidfd_open');
  const watch = pump.watch(pidfd, POLL.IN, () => {
    const status = new Uint8Array(4);
    if (libc().wait4(pid, status, WAIT.NOHANG | WAIT.ALL, null) !== pid) return;
    watch.stop();
    libc().close(pidfd);
    exited();
    const value = getS32(status, 0);
    const signal = value & 0x7f;
    resolve(signal === 0 ? (value >> 8) & 0xff : SIGNALLED + signal);
  });
  return promise;
}

/** Answers notifications until nobody is left who could cause one. */
function serveNotifications(
  listener: number,
  supervisor: Supervisor,
  slots: InterceptedMemslots | undefined,
  log: Log,
): Promise<void> {
  const { promise, resolve } = deferred<void>();
  const lib = libc();
  // Not in every kernel; without it a round trip takes about four times as long.
  lib.ioctl(listener, SECCOMP.NOTIF_SET_FLAGS, SECCOMP.FD_SYNC_WAKE_UP);
  const notification = new Uint8Array(seccompNotification.size);
  const watch = pump.watch(listener, POLL.IN, (events) => {
    if (events & POLL.IN) {
      notification.fill(0);
      if (lib.ioctlBytes(listener, SECCOMP.NOTIF_RECV, notification) < 0) return;
      const ioctl = readNotification(notification);
      const respond = (result: number | undefined): void => answer(listener, ioctl.id, result);
      if (slots?.observe(ioctl)) respond(undefined);
      else
        supervisor.answer(ioctl).then(respond, (error) => {
          log.error(`ioctl 0x${ioctl.request.toString(16)} of thread ${ioctl.tid}: ${messageOf(error)}`);
          respond(-EIO);
        });
    } else if (events & (POLL.HUP | POLL.ERR | POLL.NVAL)) {
      watch.stop();
      lib.close(listener);
      resolve();
    }
  });
  return promise;
}

function answer(listener: number, id: bigint, result: number | undefined): void {
  const response = new Uint8Array(seccompResponse.size);
  seccompResponse.write(response, 0, {
    id,
    value: BigInt(result === undefined || result < 0 ? 0 : result),
    error: result !== undefined && result < 0 ? result : 0,
    flags: result === undefined ? SECCOMP.RESPONSE_CONTINUE : 0,
  });
  // Fails when the caller was killed meanwhile; then nobody waits for it.
  libc().ioctlBytes(listener, SECCOMP.NOTIF_SEND, response);
}

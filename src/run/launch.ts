import { accessSync, constants, statSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { getS32, putU16, putU64 } from '../abi/bytes.ts';
import { ERRNO } from '../abi/errno.ts';
import { PTRACE_O, SECCOMP, SIGNAL, SYS, WAIT } from '../abi/linux.ts';
import { stopOf } from '../drivers/kvm/thread/stopped-thread.ts';
import { findSyscallSite } from '../drivers/kvm/thread/syscall-site.ts';
import { Tracee, userRegister } from '../drivers/kvm/thread/tracee.ts';
import { KvmiError } from '../error.ts';
import { check, libc, SystemError, takeDescriptor } from '../system/libc.ts';
import { ProcessMemory } from '../system/process-memory.ts';

/** The program stops itself before it becomes the one that is asked for. */
const SHELL = '/bin/sh';
const STOP_AND_EXEC = 'kill -STOP $$; exec "$@"';
/** Sizes of glibc's structures are below these. */
const FILE_ACTIONS_SIZE = 128;
const SPAWN_ATTRIBUTES_SIZE = 512;
const SIGSET_SIZE = 128;
const POSIX_SPAWN_SETSIGDEF = 4;
const PR_SET_NO_NEW_PRIVS = 38;
/** Below the stack pointer, beyond the part that a leaf function may use. */
const STACK_GAP = 4096n;
const FPROG_SIZE = 16;

/** A program under a seccomp filter whose notifications this process answers. It waits before its first instruction. */
export interface Launched {
  readonly pid: number;
  /** The filter's listener. */
  readonly listener: number;
  /** Lets the program run; it is not traced any more. */
  start(): void;
}

/** The file that `name` runs, looked for in PATH as a shell does. @throws KvmiError with code E_NOT_FOUND. */
export function findProgram(name: string, path = process.env.PATH ?? ''): string {
  const candidates = name.includes('/') ? [name] : path.split(delimiter).map((folder) => join(folder, name));
  const found = candidates.find(isExecutable);
  if (found) return found;
  throw new KvmiError('E_NOT_FOUND', `${name}: there is no such program`, {
    hint: 'Give its path, or add its folder to PATH.',
    data: { name },
  });
}

function isExecutable(file: string): boolean {
  try {
    accessSync(file, constants.X_OK);
    return statSync(file).isFile();
  } catch {
    return false;
  }
}

/** Loads `argv` under `filter` (a classic BPF program). It has this process's stdio, environment and folder. */
export function launch(argv: readonly string[], filter: Uint8Array): Launched {
  const [name, ...args] = argv;
  const program = findProgram(name ?? '');
  const pid = spawnStopped([program, ...args]);
  try {
    const tracee = throughExec(pid);
    const memory = new ProcessMemory(pid);
    try {
      const listener = installFilter(pid, tracee, memory, filter);
      return { pid, listener, start: () => tracee.detach() };
    } finally {
      memory.close();
    }
  } catch (error) {
    abandon(pid);
    throw error;
  }
}

/** Ends a program that has not been started. */
export function abandon(pid: number): void {
  libc().kill(pid, SIGNAL.SIGKILL);
  libc().wait4(pid, new Uint8Array(4), WAIT.ALL, null);
}

/** Not by child_process: the event loop would wait for the child, and get its stops instead of us. */
function spawnStopped(argv: readonly string[]): number {
  const lib = libc();
  const actions = new Uint8Array(FILE_ACTIONS_SIZE);
  lib.fileActionsInit(actions);
  // Node.js opens its own stdio close-on-exec; a duplicate onto itself is not.
  for (const fd of [0, 1, 2]) lib.fileActionsDup2(actions, fd, fd);
  const attributes = new Uint8Array(SPAWN_ATTRIBUTES_SIZE);
  lib.spawnAttributesInit(attributes);
  const ignoredByNode = new Uint8Array(SIGSET_SIZE);
  putU64(ignoredByNode, 0, (1n << BigInt(SIGNAL.SIGPIPE - 1)) | (1n << BigInt(SIGNAL.SIGXFSZ - 1)));
  lib.spawnAttributesDefault(attributes, ignoredByNode);
  lib.spawnAttributesFlags(attributes, POSIX_SPAWN_SETSIGDEF);
  const environment = Object.entries(process.env).map(([key, value]) => `${key}=${value}`);
  const pid = [0];
  const shell = [SHELL, '-c', STOP_AND_EXEC, 'sh', ...argv, null];
  const error = lib.posixSpawn(pid, SHELL, actions, attributes, shell, [...environment, null]);
  if (error !== 0) throw new SystemError(`starting ${SHELL}`, error);
  return pid[0]!;
}

/** Brings the stopped shell to the end of its execve. */
function throughExec(pid: number): Tracee {
  const status = new Uint8Array(4);
  check(libc().wait4(pid, status, WAIT.UNTRACED | WAIT.ALL, null), 'waiting for the program to start');
  if ((getS32(status, 0) & 0xff) !== 0x7f) throw new KvmiError('E_LAUNCH', `${SHELL} ended at once`);
  const tracee = Tracee.seize(pid, PTRACE_O.SYSGOOD | PTRACE_O.EXEC);
  libc().kill(pid, SIGNAL.SIGCONT);
  for (;;) {
    const event = stopOf(tracee);
    if (event.kind === 'gone') throw new KvmiError('E_LAUNCH', 'the program could not be started');
    if (event.kind === 'exec') break;
    tracee.cont(event.kind === 'signal' ? event.signal : 0);
  }
  tracee.contToSyscall();
  stopOf(tracee);
  return tracee;
}

/** Installs the filter from inside the program, and takes its listener away from it. */
function installFilter(pid: number, tracee: Tracee, memory: ProcessMemory, filter: Uint8Array): number {
  const { instruction } = findSyscallSite(pid, memory);
  const stack = Number((userRegister(tracee.getRegisters(), 'rsp') - STACK_GAP) & ~15n);
  const argument = new Uint8Array(FPROG_SIZE + filter.length);
  putU16(argument, 0, filter.length / 8);
  putU64(argument, 8, BigInt(stack + FPROG_SIZE));
  argument.set(filter, FPROG_SIZE);
  const saved = new Uint8Array(argument.length);
  memory.read(stack, saved);
  memory.write(stack, argument);
  try {
    const fd = injectFilter(tracee, instruction, stack);
    const listener = takeDescriptor(pid, fd);
    tracee.inject(instruction, SYS.close, fd);
    return listener;
  } finally {
    memory.write(stack, saved);
  }
}

function injectFilter(tracee: Tracee, instruction: bigint, argument: number): number {
  const install = (flags: number): bigint =>
    tracee.inject(instruction, SYS.seccomp, SECCOMP.SET_MODE_FILTER, flags, argument);
  let flags: number = SECCOMP.FLAG_NEW_LISTENER | SECCOMP.FLAG_WAIT_KILLABLE_RECV;
  let result = install(flags);
  if (result === BigInt(-ERRNO.EINVAL)) {
    flags = SECCOMP.FLAG_NEW_LISTENER;
    result = install(flags);
  }
  if (result === BigInt(-ERRNO.EACCES)) {
    // Without CAP_SYS_ADMIN a filter may not be given to programs that gain privileges by execve.
    tracee.inject(instruction, SYS.prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    result = install(flags);
  }
  if (result < 0n) {
    throw new SystemError(
      'seccomp(SECCOMP_SET_MODE_FILTER) in the program',
      Number(-result),
      'kvmi doctor tells what is missing.',
    );
  }
  return Number(result);
}

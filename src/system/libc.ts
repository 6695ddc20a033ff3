import { errnoName } from '../abi/errno.ts';
import { SYS } from '../abi/linux.ts';
import { KvmiError, messageOf } from '../error.ts';
import { type Koffi, type KoffiFunc, type LibraryHandle, loadKoffi } from './koffi.ts';

/*
 * Everything that KVM, ptrace, seccomp and userfaultfd need is a function of the C library; structures are encoded with
 * the tables of abi/.
 */

/** An address or a 64-bit word. */
export type Word = number | bigint;
type Buffers = Uint8Array | null;

export interface Libc {
  open(path: string, flags: number, mode: number): number;
  close(fd: number): number;
  pread(fd: number, into: Uint8Array, size: number, offset: Word): number;
  pwrite(fd: number, from: Uint8Array, size: number, offset: Word): number;
  read(fd: number, into: Uint8Array, size: number): number;
  fcntl(fd: number, command: number, argument: Word): number;
  lseek(fd: number, offset: Word, whence: number): Word;
  ioctl(fd: number, request: number, argument: Word): number;
  ioctlBytes(fd: number, request: number, argument: Uint8Array): number;
  mmap(address: Word, size: Word, protection: number, flags: number, fd: number, offset: Word): Word;
  munmap(address: Word, size: Word): number;
  ptrace(request: number, tid: number, address: Word, data: Word): number;
  ptraceBytes(request: number, tid: number, address: Word, data: Uint8Array): number;
  wait4(tid: number, status: Uint8Array, options: number, usage: null): number;
  kill(pid: number, signal: number): number;
  tgkill(pid: number, tid: number, signal: number): number;
  poll(fds: Uint8Array, count: number, timeout: number): number;
  schedYield(): number;
  recv(fd: number, into: Uint8Array, size: number, flags: number): number;
  send(fd: number, from: Uint8Array, size: number, flags: number): number;
  shutdown(fd: number, how: number): number;
  getsockopt(fd: number, level: number, name: number, value: Uint8Array, size: Uint8Array): number;
  syscall(nr: number, a: Word, b: Word, c: Word, d: Word, e: Word, f: Word): Word;
  syscallBytes(nr: number, a: Word, b: Uint8Array, c: Word): Word;
  setitimer(which: number, value: Uint8Array, old: Buffers): number;
  sigaction(signal: number, action: Uint8Array, old: Buffers): number;
  dlsym(handle: Word, name: string): Word;
  fileActionsInit(actions: Uint8Array): number;
  fileActionsDup2(actions: Uint8Array, from: number, to: number): number;
  spawnAttributesInit(attributes: Uint8Array): number;
  spawnAttributesFlags(attributes: Uint8Array, flags: number): number;
  spawnAttributesDefault(attributes: Uint8Array, signals: Uint8Array): number;
  posixSpawn(
    pid: number[],
    path: string,
    actions: Uint8Array,
    attributes: Uint8Array,
    argv: readonly (string | null)[],
    env: readonly (string | null)[],
  ): number;
  /** The error number of the call just made. */
  errno(): number;
  /** Memory of this process at `address`, not copied. */
  view(address: Word, size: number): ArrayBuffer;
  /** Where the bytes of `buffer` are. They must not be moved or collected while that is used. */
  addressOf(buffer: Uint8Array): bigint;
}

const PROTOTYPES: Readonly<Record<Exclude<keyof Libc, 'errno' | 'view' | 'addressOf'>, string>> = {
  open: 'int open(const char *path, int flags, int mode)',
  close: 'int close(int fd)',
  pread: 'int64_t pread(int fd, void *into, size_t size, int64_t offset)',
  pwrite: 'int64_t pwrite(int fd, void *from, size_t size, int64_t offset)',
  read: 'int64_t read(int fd, void *into, size_t size)',
  fcntl: 'int fcntl(int fd, int command, uintptr_t argument)',
  lseek: 'int64_t lseek(int fd, int64_t offset, int whence)',
  ioctl: 'int ioctl(int fd, unsigned long request, uintptr_t argument)',
  ioctlBytes: 'int ioctl(int fd, unsigned long request, void *argument)',
  mmap: 'uintptr_t mmap(uintptr_t address, size_t size, int protection, int flags, int fd, int64_t offset)',
  munmap: 'int munmap(uintptr_t address, size_t size)',
  ptrace: 'long ptrace(long request, int tid, uintptr_t address, uintptr_t data)',
  ptraceBytes: 'long ptrace(long request, int tid, uintptr_t address, void *data)',
  wait4: 'int wait4(int tid, void *status, int options, void *usage)',
  kill: 'int kill(int pid, int signal)',
  tgkill: 'int tgkill(int pid, int tid, int signal)',
  poll: 'int poll(void *fds, unsigned long count, int timeout)',
  schedYield: 'int sched_yield()',
  recv: 'int64_t recv(int fd, void *into, size_t size, int flags)',
  send: 'int64_t send(int fd, void *from, size_t size, int flags)',
  shutdown: 'int shutdown(int fd, int how)',
  getsockopt: 'int getsockopt(int fd, int level, int name, void *value, void *size)',
  syscall:
    'long syscall(long nr, uintptr_t a, uintptr_t b, uintptr_t c, uintptr_t d, uintptr_t e, uintptr_t f)',
  syscallBytes: 'long syscall(long nr, uintptr_t a, void *b, uintptr_t c)',
  setitimer: 'int setitimer(int which, void *value, void *old)',
  sigaction: 'int sigaction(int signal, void *action, void *old)',
  dlsym: 'uintptr_t dlsym(uintptr_t handle, const char *name)',
  fileActionsInit: 'int posix_spawn_file_actions_init(void *actions)',
  fileActionsDup2: 'int posix_spawn_file_actions_adddup2(void *actions, int from, int to)',
  spawnAttributesInit: 'int posix_spawnattr_init(void *attributes)',
  spawnAttributesFlags: 'int posix_spawnattr_setflags(void *attributes, short flags)',
  spawnAttributesDefault: 'int posix_spawnattr_setsigdefault(void *attributes, void *signals)',
  posixSpawn:
    'int posix_spawn(_Out_ int *pid, const char *path, void *actions, void *attributes, const char **argv, const char **env)',
};

/** The library's file is the same one on every Linux with glibc. */
const LIBRARY = 'libc.so.6';

let loaded: Libc | undefined;

function bind(koffi: Koffi, library: LibraryHandle): Libc {
  const bound: Partial<Record<keyof Libc, unknown>> = {
    errno: () => koffi.errno(),
    view: (address: Word, size: number) => koffi.view(BigInt(address), size),
    addressOf: (buffer: Uint8Array) => BigInt(koffi.address(buffer)),
  };
  for (const [name, prototype] of Object.entries(PROTOTYPES)) {
    bound[name as keyof Libc] = library.func(prototype) as KoffiFunc<never>;
  }
  return bound as Libc;
}

/**
 * The C library.
 *
 * @throws KvmiError with code E_NO_FFI when koffi or a C library for it is missing.
 */
export function libc(): Libc {
  if (loaded) return loaded;
  try {
    const koffi = loadKoffi();
    loaded = bind(koffi, koffi.load(LIBRARY));
    return loaded;
  } catch (error) {
    throw new KvmiError('E_NO_FFI', `system calls are not available: ${messageOf(error)}`, {
      hint: 'Install the optional dependency koffi (npm install koffi), on Linux x86-64 with glibc.',
      cause: error,
    });
  }
}

/**
 * The epoll descriptor of the main thread's event loop: readable when the loop has something to do. -1 in a Node.js
 * that does not export libuv's functions, as every build does that loads native addons.
 */
export function eventLoopDescriptor(): number {
  try {
    const node = loadKoffi().load(null);
    const loop = node.func('uintptr_t uv_default_loop()')() as Word;
    return node.func('int uv_backend_fd(uintptr_t loop)')(loop) as number;
  } catch {
    return -1;
  }
}

/** A system call failed. */
export class SystemError extends KvmiError {
  readonly errno: number;

  constructor(what: string, errno: number, hint?: string) {
    super('E_SYSTEM', `${what}: ${errnoName(errno)}`, { data: { errno }, ...(hint && { hint }) });
    this.name = 'SystemError';
    this.errno = errno;
  }
}

/** Returns `result`, or throws a SystemError when it is negative. */
export function check(result: number, what: string): number {
  if (result < 0) throw new SystemError(what, libc().errno());
  return result;
}

/** A descriptor that stands for a process (pidfd_open). */
export function openProcess(pid: number): number {
  return check(Number(libc().syscall(SYS.pidfd_open, pid, 0, 0, 0, 0, 0)), `pidfd_open(${pid})`);
}

/** A descriptor of another process, duplicated into this one. */
export function takeDescriptor(pid: number, fd: number): number {
  const { syscall, close } = libc();
  const pidfd = openProcess(pid);
  try {
    return check(
      Number(syscall(SYS.pidfd_getfd, pidfd, fd, 0, 0, 0, 0)),
      `pidfd_getfd(${fd} of process ${pid})`,
    );
  } finally {
    close(pidfd);
  }
}

const F_ADD_SEALS = 1033;
const F_GET_SEALS = 1034;

/** What cannot be done with a memfd any more (fcntl(2), "File Sealing"). */
export const F_SEAL = { SEAL: 1, SHRINK: 2, GROW: 4 } as const;

/** The seals of a file, one a bit; 0 for files that know none. */
export function sealsOf(fd: number): number {
  return Math.max(0, libc().fcntl(fd, F_GET_SEALS, 0));
}

/** @throws SystemError when the file is no memfd that may be sealed. */
export function seal(fd: number, seals: number): void {
  check(libc().fcntl(fd, F_ADD_SEALS, seals), 'sealing a file');
}

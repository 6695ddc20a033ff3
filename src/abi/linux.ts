/** System-call numbers, x86-64. */
export const SYS = {
  read: 0,
  write: 1,
  close: 3,
  mmap: 9,
  munmap: 11,
  rt_sigprocmask: 14,
  nanosleep: 35,
  ioctl: 16,
  getpid: 39,
  prctl: 157,
  futex: 202,
  restart_syscall: 219,
  tgkill: 234,
  kcmp: 312,
  seccomp: 317,
  memfd_create: 319,
  bpf: 321,
  userfaultfd: 323,
  ftruncate: 77,
  pidfd_open: 434,
  pidfd_getfd: 438,
} as const;

/** Requests of ptrace(2). */
export const PTRACE = {
  CONT: 7,
  GETREGS: 12,
  SETREGS: 13,
  DETACH: 17,
  SYSCALL: 24,
  SETOPTIONS: 0x4200,
  GETEVENTMSG: 0x4201,
  SEIZE: 0x4206,
  INTERRUPT: 0x4207,
  LISTEN: 0x4208,
  PEEKSIGINFO: 0x4209,
  GETSIGMASK: 0x420a,
  SETSIGMASK: 0x420b,
  SECCOMP_GET_FILTER: 0x420c,
  GET_SYSCALL_INFO: 0x420e,
} as const;

/** Options of PTRACE_SEIZE. */
export const PTRACE_O = { SYSGOOD: 1, CLONE: 8, EXEC: 16, SUSPEND_SECCOMP: 0x200000 } as const;

/** Upper half of a stop's status: PTRACE_EVENT_*. */
export const PTRACE_EVENT = { CLONE: 3, EXEC: 4, STOP: 128 } as const;

/** Offsets in struct user_regs_struct, x86-64. */
export const USER_REGS = {
  r15: 0,
  r14: 8,
  r13: 16,
  r12: 24,
  rbp: 32,
  rbx: 40,
  r11: 48,
  r10: 56,
  r9: 64,
  r8: 72,
  rax: 80,
  rcx: 88,
  rdx: 96,
  rsi: 104,
  rdi: 112,
  orig_rax: 120,
  rip: 128,
  cs: 136,
  eflags: 144,
  rsp: 152,
  ss: 160,
} as const;
export const USER_REGS_SIZE = 216;

/** Options of wait4(2). */
export const WAIT = { NOHANG: 1, UNTRACED: 2, ALL: 0x40000000 } as const;

export const SIGNAL = {
  SIGHUP: 1,
  SIGINT: 2,
  SIGQUIT: 3,
  SIGTRAP: 5,
  SIGKILL: 9,
  SIGPIPE: 13,
  SIGALRM: 14,
  SIGTERM: 15,
  SIGCHLD: 17,
  SIGCONT: 18,
  SIGSTOP: 19,
  SIGURG: 23,
  SIGXFSZ: 25,
} as const;

/** Values that a system call leaves in rax for the kernel's own restart (include/linux/errno.h). */
export const RESTART = { SYS: -512n, NOINTR: -513n, NOHAND: -514n, BLOCK: -516n } as const;

/** seccomp(2): operations, flags, actions; the ioctls of a listener. */
export const SECCOMP = {
  SET_MODE_FILTER: 1,
  GET_NOTIF_SIZES: 3,
  FLAG_NEW_LISTENER: 8,
  FLAG_WAIT_KILLABLE_RECV: 32,
  RET_USER_NOTIF: 0x7fc00000,
  RET_ALLOW: 0x7fff0000,
  RET_LOG: 0x7ffc0000,
  /** In the Seccomp line of /proc/PID/status. */
  MODE_FILTER: 2,
  RESPONSE_CONTINUE: 1,
  NOTIF_RECV: 0xc0502100,
  NOTIF_SEND: 0xc0182101,
  NOTIF_ID_VALID: 0x40082102,
  NOTIF_SET_FLAGS: 0x40082104,
  /** The one that waits is woken on the same processor. */
  FD_SYNC_WAKE_UP: 1,
} as const;
export const AUDIT_ARCH_X86_64 = 0xc000003e;

/** userfaultfd(2): features, ioctls and messages. */
export const UFFD = {
  API: 0xaa,
  FEATURE_PAGEFAULT_FLAG_WP: 1n,
  FEATURE_WP_HUGETLBFS_SHMEM: 1n << 12n,
  FEATURE_THREAD_ID: 1n << 8n,
  FEATURE_MOVE: 1n << 16n,
  IOCTL_API: 0xc018aa3f,
  IOCTL_REGISTER: 0xc020aa00,
  IOCTL_UNREGISTER: 0x8010aa01,
  IOCTL_WAKE: 0x8010aa02,
  IOCTL_MOVE: 0xc028aa05,
  IOCTL_WRITEPROTECT: 0xc018aa06,
  MODE_MISSING: 1n,
  MODE_WP: 2n,
  WRITEPROTECT_WP: 1n,
  EVENT_PAGEFAULT: 0x12,
  FLAG_WRITE: 1n,
  FLAG_WP: 2n,
} as const;

export const POLL = { IN: 1, OUT: 4, ERR: 8, HUP: 16, NVAL: 32 } as const;

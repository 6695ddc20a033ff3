/** Linux error numbers, as positive values. */
export const ERRNO = {
  EPERM: 1,
  ENOENT: 2,
  ESRCH: 3,
  EINTR: 4,
  EIO: 5,
  E2BIG: 7,
  EBADF: 9,
  ECHILD: 10,
  EAGAIN: 11,
  ENOMEM: 12,
  EACCES: 13,
  EFAULT: 14,
  EBUSY: 16,
  EEXIST: 17,
  ENODEV: 19,
  EINVAL: 22,
  EMFILE: 24,
  ENOTTY: 25,
  EPIPE: 32,
  ENOSYS: 38,
  EOPNOTSUPP: 95,
  ECONNRESET: 104,
} as const;

const NAMES = new Map<number, string>(Object.entries(ERRNO).map(([name, errno]) => [errno, name]));

/** `ENOENT`; `errno 999` for one that is not known here. */
export function errnoName(errno: number): string {
  return NAMES.get(errno) ?? `errno ${errno}`;
}

/** The error numbers of KVMI replies (include/uapi/linux/kvm_para.h), as positive values. */
export const KVM_ERRNO = {
  KVM_EPERM: 1,
  KVM_ENOENT: 2,
  KVM_E2BIG: 7,
  KVM_EAGAIN: 11,
  KVM_ENOMEM: 12,
  KVM_EFAULT: 14,
  KVM_EBUSY: 16,
  KVM_EINVAL: 22,
  KVM_EOPNOTSUPP: 95,
  KVM_ENOSYS: 1000,
} as const;

export type KvmErrno = keyof typeof KVM_ERRNO;

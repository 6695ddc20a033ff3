/** Linux error numbers that the ioctls answer, as positive values. */
export const ERRNO = {
  EPERM: 1,
  ENOENT: 2,
  EINTR: 4,
  EIO: 5,
  E2BIG: 7,
  EAGAIN: 11,
  ENOMEM: 12,
  EFAULT: 14,
  EBUSY: 16,
  EEXIST: 17,
  EINVAL: 22,
  ENOTTY: 25,
  ENOSYS: 38,
  EOPNOTSUPP: 95,
} as const;

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

import { byteArray, s32, struct, u32 } from './struct.ts';

/** The introspection requests (VM ioctls) and what {@link IOCTL_TABLES} calls them. */
export type IntrospectionRequest = 'HOOK' | 'UNHOOK' | 'COMMAND' | 'EVENT' | 'PREUNHOOK';

/** KVM_CHECK_EXTENSION, in both series. */
export const KVM_CHECK_EXTENSION = 0xae03;

/** Argument of KVM_INTROSPECTION_HOOK (struct kvm_introspection_hook). */
export const kvmIntrospectionHook = struct('kvm_introspection_hook', 24, {
  fd: s32,
  padding: u32,
  uuid: byteArray(16),
});

/** Argument of KVM_INTROSPECTION_COMMAND and _EVENT (struct kvm_introspection_feature). */
export const kvmIntrospectionFeature = struct('kvm_introspection_feature', 8, { allow: u32, id: s32 });

export interface IoctlTable {
  /** Number that KVM_CHECK_EXTENSION takes for KVM_CAP_INTROSPECTION. */
  readonly capability: number;
  /** Since v10 the capability reads 0 while introspection is disabled. */
  readonly hidesWhenDisabled: boolean;
  readonly requests: Readonly<Record<IntrospectionRequest, number>>;
}

/** Request numbers by series. v12's capability number is the next free one of its base kernel. */
export const IOCTL_TABLES = {
  v7: {
    capability: 179,
    hidesWhenDisabled: false,
    requests: {
      HOOK: 0x4018aec3,
      UNHOOK: 0x0000aec4,
      COMMAND: 0x4008aec5,
      EVENT: 0x4008aec6,
      PREUNHOOK: 0x0000aec7,
    },
  },
  v9: {
    capability: 184,
    hidesWhenDisabled: false,
    requests: {
      HOOK: 0x4018aec3,
      UNHOOK: 0x0000aec4,
      COMMAND: 0x4008aec5,
      EVENT: 0x4008aec6,
      PREUNHOOK: 0x0000aec7,
    },
  },
  v12: {
    capability: 206,
    hidesWhenDisabled: true,
    requests: {
      HOOK: 0x4018aec8,
      UNHOOK: 0x0000aec9,
      COMMAND: 0x4008aeca,
      EVENT: 0x4008aecb,
      PREUNHOOK: 0x0000aecc,
    },
  },
} as const satisfies Record<string, IoctlTable>;

/** v10 and v11 use v12's requests under this capability number. */
export const KVM_CAP_INTROSPECTION_V10 = 193;

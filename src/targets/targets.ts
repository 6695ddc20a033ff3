import { EMBEDDED_TARGET } from './embedded.ts';
import { KVM_TARGET } from './kvm.ts';
import { LIBVIRT_TARGET, QEMU_TARGET } from './qemu.ts';
import { SNAPSHOT_TARGET } from './snapshot.ts';
import type { Target } from './target.ts';

/** Every kind of target; a driver adds its own here. */
export const TARGETS: readonly Target[] = [
  QEMU_TARGET,
  LIBVIRT_TARGET,
  KVM_TARGET,
  SNAPSHOT_TARGET,
  EMBEDDED_TARGET,
];

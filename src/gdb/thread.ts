import type { GuestVcpu } from '../tool/index.ts';

/** Threads are vCPUs, counted from 1. */
export function threadId(vcpu: GuestVcpu): string {
  return (vcpu.index + 1).toString(16);
}

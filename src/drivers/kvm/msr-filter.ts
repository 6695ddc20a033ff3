import {
  KVM,
  KVM_CAP,
  KVM_MSR_EXIT_REASON_FILTER,
  KVM_MSR_FILTER_WRITE,
  kvmEnableCap,
  kvmMsrFilter,
} from '../../abi/kvm.ts';
import { SYS } from '../../abi/linux.ts';
import { KvmiError } from '../../error.ts';
import type { Call } from './agent.ts';
import { SystemError } from './libc.ts';
import type { VcpuThread } from './vcpu-thread.ts';

/** What KVM has room for. */
const MAX_RANGES = 16;
const NO_RANGE = { flags: 0, nmsrs: 0, base: 0, bitmap: 0n };

/** The MSRs whose writes leave the guest (KVM_CAP_X86_USER_SPACE_MSR and the VM's filter). */
export class MsrFilter {
  readonly #counts = new Map<number, number>();

  get active(): boolean {
    return this.#counts.size > 0;
  }

  /** Adds a trap; true when the filter has to be set. */
  add(msr: number): boolean {
    if (!this.#counts.has(msr) && this.#counts.size >= MAX_RANGES) {
      throw new KvmiError('E_NO_MEMORY', `at most ${MAX_RANGES} MSRs can be trapped at once`);
    }
    const count = this.#counts.get(msr) ?? 0;
    this.#counts.set(msr, count + 1);
    return count === 0;
  }

  /** Takes a trap away; true when the filter has to be set. */
  remove(msr: number): boolean {
    const count = this.#counts.get(msr);
    if (count === undefined) return false;
    if (count > 1) this.#counts.set(msr, count - 1);
    else this.#counts.delete(msr);
    return count === 1;
  }

  clear(): void {
    this.#counts.clear();
  }

  /** Sets the filter of the VM by way of a held thread. */
  apply(thread: VcpuThread, vmFd: number): void {
    const { slot } = thread;
    const capability = slot.argumentAddress;
    const filter = capability + kvmEnableCap.size;
    const bitmap = filter + kvmMsrFilter.size;
    const reasons = this.active ? BigInt(KVM_MSR_EXIT_REASON_FILTER) : 0n;
    kvmEnableCap.write(slot.argument, 0, {
      cap: KVM_CAP.X86_USER_SPACE_MSR,
      flags: 0,
      args: [reasons, 0n, 0n, 0n],
    });
    const msrs = [...this.#counts.keys()];
    kvmMsrFilter.write(slot.argument, kvmEnableCap.size, {
      flags: 0,
      ranges: Array.from({ length: MAX_RANGES }, (_, i) => {
        const base = msrs[i];
        if (base === undefined) return NO_RANGE;
        return { flags: KVM_MSR_FILTER_WRITE, nmsrs: 1, base, bitmap: BigInt(bitmap) };
      }),
    });
    slot.argument.fill(0, kvmEnableCap.size + kvmMsrFilter.size, kvmEnableCap.size + kvmMsrFilter.size + 8);
    const enable: Call = [SYS.ioctl, vmFd, KVM.ENABLE_CAP, capability];
    const set: Call = [SYS.ioctl, vmFd, KVM.X86_SET_MSR_FILTER, filter];
    // Writes that are filtered raise #GP unless they leave the guest: that comes first, and goes last.
    const results = thread.call(this.active ? [enable, set] : [set, enable]);
    const failed = results.find((result) => result < 0n);
    if (failed !== undefined) throw new SystemError('setting the MSR filter of the VM', Number(-failed));
  }
}

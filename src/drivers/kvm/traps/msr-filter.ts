import { putU32 } from '../../../abi/bytes.ts';
import {
  KVM,
  KVM_CAP,
  KVM_MSR_EXIT_REASON_FILTER,
  KVM_MSR_FILTER_WRITE,
  kvmEnableCap,
  kvmMsrFilter,
} from '../../../abi/kvm.ts';
import { SYS } from '../../../abi/linux.ts';
import { KvmiError } from '../../../error.ts';
import { SystemError } from '../../../system/libc.ts';
import type { Call, Slot } from '../thread/agent.ts';
import { SLOT } from '../thread/agent-code.ts';
import type { VcpuThread } from '../thread/vcpu-thread.ts';

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

  /**
   * Writes the filter where the agent of a vCPU takes it from. `alone`: it is the only vCPU, so that its agent can have
   * the filter on only while it runs the guest.
   */
  put(slot: Slot, vmFd: number, alone: boolean): void {
    this.#putTables(slot);
    putU32(slot.bytes, SLOT.vmFd, this.active ? vmFd : -1);
    putU32(slot.bytes, SLOT.switchFd, this.active && alone ? vmFd : -1);
  }

  #putTables(slot: Slot): void {
    const bitmap = BigInt(slot.address + SLOT.filterBitmap);
    const msrs = [...this.#counts.keys()];
    const ranges = Array.from({ length: MAX_RANGES }, (_, i) => {
      const base = msrs[i];
      return base === undefined ? NO_RANGE : { flags: KVM_MSR_FILTER_WRITE, nmsrs: 1, base, bitmap };
    });
    kvmMsrFilter.write(slot.bytes, SLOT.filterOn, { flags: 0, ranges });
    kvmMsrFilter.write(slot.bytes, SLOT.filterOff, { flags: 0, ranges: ranges.map(() => NO_RANGE) });
  }

  /** Sets the filter of the VM by way of a held thread. */
  apply(thread: VcpuThread, vmFd: number): void {
    const { slot } = thread;
    this.#putTables(slot);
    // Until it is known to be off: an agent that is left alone meanwhile takes it off.
    putU32(slot.bytes, SLOT.vmFd, vmFd);
    kvmEnableCap.write(slot.argument, 0, {
      cap: KVM_CAP.X86_USER_SPACE_MSR,
      flags: 0,
      args: [this.active ? BigInt(KVM_MSR_EXIT_REASON_FILTER) : 0n, 0n, 0n, 0n],
    });
    const filter = slot.address + (this.active ? SLOT.filterOn : SLOT.filterOff);
    const enable: Call = [SYS.ioctl, vmFd, KVM.ENABLE_CAP, slot.argumentAddress];
    const set: Call = [SYS.ioctl, vmFd, KVM.X86_SET_MSR_FILTER, filter];
    // Writes that are filtered raise #GP unless they leave the guest: that comes first, and goes last.
    const results = thread.call(this.active ? [enable, set] : [set, enable]);
    const failed = results.find((result) => result < 0n);
    if (failed !== undefined) throw new SystemError('setting the MSR filter of the VM', Number(-failed));
    if (!this.active) putU32(slot.bytes, SLOT.vmFd, -1);
  }
}

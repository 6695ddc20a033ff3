import { getU32, getU64, putU32, putU64 } from '../../../abi/bytes.ts';
import { KVM_RUN_PAGE, KVM_SYNC_X86 } from '../../../abi/kvm.ts';
import { kvmRegs, kvmSregs } from '../../../abi/x86.ts';
import { libc, takeDescriptor } from '../../../system/libc.ts';
import { SharedMapping } from '../../../system/shared-mapping.ts';

const SIZE = 4096;

/** The kvm_run page of a vCPU, shared with its VMM. It keeps the VM alive until it is closed. */
export class RunPage {
  readonly bytes: Uint8Array;
  readonly #mapping: SharedMapping;
  #closed = false;

  constructor(pid: number, vcpuFd: number) {
    const fd = takeDescriptor(pid, vcpuFd);
    try {
      this.#mapping = new SharedMapping('the kvm_run page', fd, SIZE, 'write');
    } finally {
      libc().close(fd);
    }
    this.bytes = this.#mapping.bytes;
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#mapping.unmap();
  }

  get exitReason(): number {
    return getU32(this.bytes, KVM_RUN_PAGE.exitReason);
  }

  set exitReason(reason: number) {
    putU32(this.bytes, KVM_RUN_PAGE.exitReason, reason);
  }

  /** The structure that belongs to the exit reason. */
  get exit(): Uint8Array {
    return this.bytes.subarray(KVM_RUN_PAGE.exit, KVM_RUN_PAGE.validRegs);
  }

  get immediateExit(): number {
    return this.bytes[KVM_RUN_PAGE.immediateExit]!;
  }

  set immediateExit(value: number) {
    this.bytes[KVM_RUN_PAGE.immediateExit] = value;
  }

  /** Makes each exit publish the registers in the page (KVM_CAP_SYNC_REGS), or no longer. */
  set publish(on: boolean) {
    putU64(this.bytes, KVM_RUN_PAGE.validRegs, on ? KVM_SYNC_X86.REGS | KVM_SYNC_X86.SREGS : 0n);
  }

  get publish(): boolean {
    return getU64(this.bytes, KVM_RUN_PAGE.validRegs) !== 0n;
  }

  get regs(): Uint8Array {
    return this.bytes.subarray(KVM_RUN_PAGE.regs, KVM_RUN_PAGE.regs + kvmRegs.size);
  }

  get sregs(): Uint8Array {
    return this.bytes.subarray(KVM_RUN_PAGE.sregs, KVM_RUN_PAGE.sregs + kvmSregs.size);
  }

  /** Makes the next entry take the registers of the page. */
  markRegsDirty(): void {
    const dirty = getU64(this.bytes, KVM_RUN_PAGE.dirtyRegs);
    putU64(this.bytes, KVM_RUN_PAGE.dirtyRegs, dirty | KVM_SYNC_X86.REGS);
  }
}

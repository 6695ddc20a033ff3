import { KVM, KVM_MEM, kvmMemoryRegion } from '../abi/kvm.ts';
import type { Memslot } from '../drivers/kvm/slots/memslots.ts';
import { readRequest, type SlotRequest } from '../drivers/kvm/slots/slot-request.ts';
import { sameAddressSpace, type VmFile } from '../drivers/kvm/slots/vm-file.ts';
import { PAGE_SIZE } from '../machine/address.ts';
import { SystemError } from '../system/libc.ts';
import { kvmDescriptors, kvmKind, processOf } from '../system/proc.ts';
import { ProcessMemory } from '../system/process-memory.ts';
import type { InterceptedIoctl } from './requests.ts';

/** Guest-physical addresses have 52 bits at most; what a processor with fewer refuses, a guest cannot reach. */
const GPA_END = 2 ** 52;
/** Above these bits a slot number names another address space: that of system management mode. */
const SLOT_BITS = 16;

/** The requests that are looked at before the kernel carries them out, and the flags that it takes with each. */
const REGION_FLAGS: ReadonlyMap<number, number> = new Map([
  [KVM.SET_USER_MEMORY_REGION, KVM_MEM.LOG_DIRTY_PAGES | KVM_MEM.READONLY],
  [KVM.SET_USER_MEMORY_REGION2, KVM_MEM.LOG_DIRTY_PAGES | KVM_MEM.READONLY | KVM_MEM.GUEST_MEMFD],
]);

/** What {@link InterceptedMemslots} has to be told of. */
export const MEMORY_REQUESTS: readonly number[] = [KVM.CREATE_VM, ...REGION_FLAGS.keys()];

export function isMemoryRequest(request: number): boolean {
  return MEMORY_REQUESTS.includes(request);
}

/**
 * The slots of a VM, from the requests that were made. What the kernel answers is not known: requests that it refuses
 * are told by the rules of its kvm_set_memory_region(). (It could still refuse one for lack of memory.)
 */
export class SlotTable {
  readonly #slots = new Map<number, Memslot>();

  /**
   * Does what the kernel does with a request; `knownFlags` are those that it takes. False when it refuses it, or when it
   * is about another address space.
   */
  apply({ slot, flags, gpa, size, hva }: SlotRequest, knownFlags: number): boolean {
    const aligned = [gpa, size, hva].every((value) => value % PAGE_SIZE === 0);
    if (slot >>> SLOT_BITS !== 0 || (flags & ~knownFlags) !== 0 || !aligned || gpa + size > GPA_END)
      return false;
    if (size === 0) return this.#slots.delete(slot);
    const wanted: Memslot = { slot, gpa, size, hva, readonly: (flags & KVM_MEM.READONLY) !== 0 };
    const old = this.#slots.get(slot);
    if (old && (old.hva !== hva || old.size !== size || old.readonly !== wanted.readonly)) return false;
    for (const other of this.#slots.values()) if (other !== old && overlap(other, wanted)) return false;
    this.#slots.set(slot, wanted);
    return true;
  }

  get slots(): readonly Memslot[] {
    return [...this.#slots.values()];
  }
}

function overlap(a: Memslot, b: Memslot): boolean {
  return a.gpa < b.gpa + b.size && b.gpa < a.gpa + a.size;
}

/** What is known of a process that makes memory requests. */
class Requester {
  readonly pid: number;
  /** By descriptor of the VM. */
  readonly tables = new Map<number, SlotTable>();
  #memory: ProcessMemory;

  constructor(pid: number) {
    this.pid = pid;
    this.#memory = new ProcessMemory(pid);
  }

  /** Undefined when the descriptor is no VM. */
  table(fd: number): SlotTable | undefined {
    const known = this.tables.get(fd);
    if (known || kvmKind(this.pid, fd) !== 'vm') return known;
    const table = new SlotTable();
    this.tables.set(fd, table);
    return table;
  }

  /** Undefined when the request cannot be read: the kernel will refuse it. */
  read(address: number): SlotRequest | undefined {
    const bytes = new Uint8Array(kvmMemoryRegion.size);
    if (!this.#memory.read(address, bytes)) {
      // The process may have another memory since an execve.
      this.#memory.close();
      this.#memory = new ProcessMemory(this.pid);
      if (!this.#memory.read(address, bytes)) return undefined;
    }
    return readRequest(bytes, 0);
  }

  close(): void {
    this.#memory.close();
  }
}

/**
 * The memory slots of VMs whose VMM runs under `kvmi run`, where the kernel itself cannot be asked: from the requests
 * that made them.
 *
 * No descriptor is held for it, because that would keep VMs that their VMM has closed. Numbers are given out again
 * only to later VMs, so that the creation of a VM is the time to forget those that are closed.
 */
export class InterceptedMemslots {
  readonly #requesters = new Set<Requester>();

  /** Whether `ioctl` is one of {@link MEMORY_REQUESTS}; it is taken note of then. */
  observe({ tid, fd, request, argument }: InterceptedIoctl): boolean {
    if (request === KVM.CREATE_VM) {
      this.#forgetClosed();
      return true;
    }
    const flags = REGION_FLAGS.get(request);
    if (flags === undefined) return false;
    try {
      const requester = this.#requester(tid);
      const region = requester?.read(argument);
      if (region) requester!.table(fd)?.apply(region, flags);
    } catch (error) {
      // The process is gone, or was killed meanwhile.
      if (!(error instanceof SystemError)) throw error;
    }
    return true;
  }

  #requester(tid: number): Requester | undefined {
    for (const known of this.#requesters) if (sameAddressSpace(known.pid, tid)) return known;
    const pid = processOf(tid);
    if (pid === undefined) return undefined;
    const requester = new Requester(pid);
    this.#requesters.add(requester);
    return requester;
  }

  #forgetClosed(): void {
    for (const requester of this.#requesters) {
      const { vms } = kvmDescriptors(requester.pid);
      for (const fd of requester.tables.keys()) if (!vms.includes(fd)) requester.tables.delete(fd);
      if (requester.tables.size > 0) continue;
      this.#requesters.delete(requester);
      requester.close();
    }
  }

  /** The slots of a VM, in the order of their addresses. */
  memslots(vm: VmFile): readonly Memslot[] {
    const tables = [...this.#requesters]
      .filter(({ pid }) => pid === vm.pid)
      .flatMap((each) => [...each.tables]);
    const found = tables.flatMap(([fd, table]) => (vm.is(vm.pid, fd) ? table.slots : []));
    return found.sort((a, b) => a.gpa - b.gpa);
  }
}

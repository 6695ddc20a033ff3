import { getU32, getU64Number } from '../../abi/bytes.ts';
import { KVM, KVM_MEM, kvmMemoryRegion } from '../../abi/kvm.ts';
import type { Memslot } from './memslots.ts';
import { kvmDescriptors, processOf } from './proc.ts';
import { ProcessMemory } from './process-memory.ts';
import type { InterceptedIoctl } from './requests.ts';
import type { VmFile } from './vm-file.ts';

const PAGE_SIZE = 4096;
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

/** What KVM_SET_USER_MEMORY_REGION asks for. */
export interface MemoryRequest {
  readonly slot: number;
  readonly flags: number;
  readonly gpa: number;
  readonly size: number;
  readonly hva: number;
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
  apply({ slot, flags, gpa, size, hva }: MemoryRequest, knownFlags: number): boolean {
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

/**
 * The memory slots of VMs whose VMM runs under `kvmi run`, where the kernel itself cannot be asked: from the requests
 * that made them.
 *
 * No descriptor is held for it, because that would keep VMs that their VMM has closed. Numbers are given out again
 * only to later VMs, so that the creation of a VM is the time to forget those that are closed.
 */
export class InterceptedMemslots {
  /** By process and descriptor. */
  readonly #tables = new Map<number, Map<number, SlotTable>>();

  /** Whether `ioctl` is one of {@link MEMORY_REQUESTS}; it is taken note of then. */
  observe({ tid, fd, request, argument }: InterceptedIoctl): boolean {
    const flags = REGION_FLAGS.get(request);
    if (flags === undefined) {
      if (request !== KVM.CREATE_VM) return false;
      this.#forgetClosed();
      return true;
    }
    const pid = processOf(tid);
    const region = pid === undefined ? undefined : readRegion(pid, argument);
    if (region) this.#table(pid!, fd).apply(region, flags);
    return true;
  }

  #table(pid: number, fd: number): SlotTable {
    const tables = this.#tables.get(pid) ?? new Map<number, SlotTable>();
    this.#tables.set(pid, tables);
    const table = tables.get(fd) ?? new SlotTable();
    tables.set(fd, table);
    return table;
  }

  #forgetClosed(): void {
    for (const [pid, tables] of this.#tables) {
      const { vms } = kvmDescriptors(pid);
      for (const fd of tables.keys()) if (!vms.includes(fd)) tables.delete(fd);
      if (tables.size === 0) this.#tables.delete(pid);
    }
  }

  /** The slots of a VM, in the order of their addresses. */
  memslots(vm: VmFile): readonly Memslot[] {
    const found: Memslot[] = [];
    for (const [fd, table] of this.#tables.get(vm.pid) ?? [])
      if (vm.is(vm.pid, fd)) found.push(...table.slots);
    return found.sort((a, b) => a.gpa - b.gpa);
  }
}

/** Undefined when it cannot be read: the kernel will refuse it. */
function readRegion(pid: number, address: number): MemoryRequest | undefined {
  let memory: ProcessMemory | undefined;
  try {
    memory = new ProcessMemory(pid);
    const bytes = new Uint8Array(kvmMemoryRegion.size);
    if (!memory.read(address, bytes)) return undefined;
    return {
      slot: getU32(bytes, 0),
      flags: getU32(bytes, 4),
      gpa: getU64Number(bytes, 8),
      size: getU64Number(bytes, 16),
      hva: getU64Number(bytes, 24),
    };
  } catch {
    return undefined;
  } finally {
    memory?.close();
  }
}

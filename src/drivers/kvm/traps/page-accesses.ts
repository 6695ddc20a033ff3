import { putU32 } from '../../../abi/bytes.ts';
import { KVM, KVM_EXIT, KVM_MEM, kvmMmioExit } from '../../../abi/kvm.ts';
import { SYS } from '../../../abi/linux.ts';
import { STATE_SIZE } from '../../../abi/state.ts';
import { ACCESS, type Answer, PAGE_SIZE, pageOffset, type Stop, translate } from '../../../machine/index.ts';
import type { VmmMemory } from '../slots/memory.ts';
import { SLOT } from '../thread/agent-code.ts';
import type { VcpuThread } from '../thread/vcpu-thread.ts';
import type { Vmm } from '../thread/vmm.ts';
import type { KvmVcpu } from '../vcpu.ts';
import type { AwayPage, PageSlots } from './page-slots.ts';

/** A page stop whose virtual address is not known. */
const NO_GVA = (1n << 64n) - 1n;
/** Where the exit of an access has its bytes. */
const DATA = kvmMmioExit.offsetOf('data');
/** More accesses than any instruction makes. */
const MOST_FRAGMENTS = 64;
/** How far the last byte of the longest instruction is from its first. */
const INSTRUCTION_END = 14n;

type PageStop = Extract<Stop, { kind: 'page' }>;

interface Accessed {
  readonly gpa: number;
  readonly hva: number;
  readonly length: number;
  readonly write: boolean;
}

/**
 * What vCPUs leave the guest for because a page is away. Reads and writes come as accesses to a device, and are carried
 * out on the page; KVM makes several of one that has more than 8 bytes. Fetches fail, and are made again with the page
 * back for one instruction.
 */
export class PageAccesses {
  readonly #vmm: Vmm;
  readonly #memory: VmmMemory;
  readonly #slots: PageSlots;
  /** Writes whose instruction has ended without them. */
  readonly #unwritten = new Map<KvmVcpu, { readonly hva: number; readonly data: Uint8Array } | undefined>();

  constructor(vmm: Vmm, memory: VmmMemory, slots: PageSlots) {
    this.#vmm = vmm;
    this.#memory = memory;
    this.#slots = slots;
  }

  /** Whether the exit of a vCPU is because a page is away. */
  claims(vcpu: KvmVcpu): boolean {
    if (!this.#slots.used) return false;
    const thread = vcpu.thread!;
    const { exitReason } = thread.page;
    // Where it fails with all pages back, it is not because of them.
    if (exitReason === KVM_EXIT.INTERNAL_ERROR) return !this.#slots.hasAll(vcpu);
    return exitReason === KVM_EXIT.MMIO && this.#accessed(thread) !== undefined;
  }

  /** The page that an access is to. Writes to memory that is read-only are the VMM's. */
  #accessed({ page }: VcpuThread): Accessed | undefined {
    const { phys_addr, len, is_write } = kvmMmioExit.read(page.exit, 0);
    const gpa = Number(phys_addr);
    const original = this.#slots.slotOf(gpa);
    if (!original || len > 8) return undefined;
    const write = is_write !== 0;
    if (write && (original.flags & KVM_MEM.READONLY) !== 0) return undefined;
    return { gpa, hva: original.hva + (gpa - original.gpa), length: len, write };
  }

  /** What is to be told of such an exit; undefined when the access is one that the page allows. */
  stopOf(vcpu: KvmVcpu): PageStop | undefined {
    const thread = vcpu.thread!;
    if (thread.page.exitReason === KVM_EXIT.INTERNAL_ERROR) return this.#fetchStop(vcpu);
    const { gpa, write } = this.#accessed(thread)!;
    const access = write ? ACCESS.write : ACCESS.read;
    const page = this.#slots.at(gpa);
    return page && (page.access & access) === 0
      ? { kind: 'page', gva: NO_GVA, gpa, access, view: 0 }
      : undefined;
  }

  /** An instruction that could not be carried out: because it, or its end, is on such a page, or else accesses one. */
  #fetchStop(vcpu: KvmVcpu): PageStop | undefined {
    const denied = this.#fetched(vcpu).find(({ page }) => (page.access & ACCESS.execute) === 0);
    if (!denied) return undefined;
    const { gva, page } = denied;
    return { kind: 'page', gva, gpa: page.gpa + Number(gva & 0xfffn), access: ACCESS.execute, view: 0 };
  }

  /** The pages that the next instruction of a vCPU is on, or may be, and that are away for it. */
  #fetched(vcpu: KvmVcpu): { readonly gva: bigint; readonly page: AwayPage }[] {
    const state = new Uint8Array(STATE_SIZE);
    vcpu.readState(state);
    const first = vcpu.instructionPointer();
    const last = first + INSTRUCTION_END;
    const starts = last >> 12n === first >> 12n ? [first] : [first, last & ~0xfffn];
    return starts.flatMap((gva) => {
      const gpa = translate(this.#memory, state, gva) as number | undefined;
      const page = gpa === undefined ? undefined : this.#slots.at(gpa);
      return page && !this.#slots.isBackFor(vcpu, page.gpa) ? [{ gva, page }] : [];
    });
  }

  /**
   * Carries out what the exit was for. True when the guest has to do it itself: it is to be stepped by one instruction,
   * for which the pages are back.
   */
  complete(vcpu: KvmVcpu, substitute?: Answer['substitute']): boolean {
    const thread = vcpu.thread!;
    if (thread.page.exitReason !== KVM_EXIT.INTERNAL_ERROR) {
      this.carryOut(vcpu, substitute);
      return false;
    }
    const fetched = this.#fetched(vcpu).map(({ page }) => page.gpa);
    // Else it is an instruction that KVM cannot carry out on a device: it gets all pages.
    this.#slots.bringBack(vcpu, fetched.length > 0 ? fetched : undefined);
    return true;
  }

  /**
   * Lets the instruction of a vCPU that is at an access end, because registers that are set before would be replaced by
   * what it does. A read gives what the page has; a write is left to the answer.
   */
  settle(vcpu: KvmVcpu): void {
    const access = this.#waiting(vcpu);
    if (!access) return;
    const thread = vcpu.thread!;
    const { page, slot, fd } = thread;
    if (access.write) this.#unwritten.set(vcpu, { hva: access.hva, data: bytesOf(thread, access) });
    else this.#unwritten.set(vcpu, undefined);
    const { immediateExit } = page;
    page.immediateExit = 1;
    // More than one where it accesses other bytes, too.
    for (let i = 0; i < MOST_FRAGMENTS; i++) {
      const next = this.#accessed(thread);
      if (next && !next.write) this.carryOut(vcpu);
      const [result] = thread.call([[SYS.ioctl, fd, KVM.RUN, 0]]);
      if (result !== 0n || page.exitReason !== KVM_EXIT.MMIO) break;
    }
    page.immediateExit = immediateExit;
    putU32(slot.bytes, SLOT.waiting, 0);
  }

  /** Ends a stop whose instruction has been settled; false when it was not. */
  settled(vcpu: KvmVcpu, carriedOut: boolean): boolean {
    if (!this.#unwritten.has(vcpu)) return false;
    const write = this.#unwritten.get(vcpu);
    this.#unwritten.delete(vcpu);
    if (write && carriedOut) this.#vmm.memory.write(write.hva, write.data);
    return true;
  }

  /** The access that a vCPU waits for. */
  #waiting({ thread }: KvmVcpu): Accessed | undefined {
    const { page, slot } = thread!;
    if (page.exitReason !== KVM_EXIT.MMIO || slot.bytes[SLOT.waiting] === 0) return undefined;
    return this.#accessed(thread!);
  }

  /** Carries out the read or write that a vCPU waits for, if it does. */
  carryOut(vcpu: KvmVcpu, substitute?: Answer['substitute']): void {
    const access = this.#waiting(vcpu);
    if (!access) return;
    const { page, slot } = vcpu.thread!;
    const data = bytesOf(vcpu.thread!, access);
    if (access.write) {
      this.#vmm.memory.write(access.hva, data);
    } else {
      this.#vmm.memory.read(access.hva, data);
      if (substitute) show(data, access.gpa, substitute);
      page.exit.set(data, DATA);
    }
    putU32(slot.bytes, SLOT.waiting, 0);
  }

  /** Carries out what a vCPU waits for that is let go without an answer. */
  abandon(vcpu: KvmVcpu): void {
    if (vcpu.thread?.phase === 'held' && !this.settled(vcpu, true)) this.carryOut(vcpu);
  }
}

function bytesOf({ page }: VcpuThread, { length }: Accessed): Uint8Array {
  return page.exit.slice(DATA, DATA + length);
}

/** What a tool shows instead of memory. Virtual and physical addresses have the same place in their pages. */
function show(data: Uint8Array, gpa: number, { gva, bytes }: NonNullable<Answer['substitute']>): void {
  const start = Number(gva & 0xfffn);
  for (let i = 0; i < data.length; i++) {
    const byte = bytes[(pageOffset(gpa + i) - start + PAGE_SIZE) % PAGE_SIZE];
    if (byte !== undefined) data[i] = byte;
  }
}

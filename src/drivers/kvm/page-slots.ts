import { putU32, putU64 } from '../../abi/bytes.ts';
import { KVM, KVM_EXIT, KVM_MEM, kvmMemoryRegion, kvmMmioExit } from '../../abi/kvm.ts';
import { SYS } from '../../abi/linux.ts';
import { STATE_SIZE } from '../../abi/state.ts';
import { KvmiError } from '../../error.ts';
import { ACCESS, type Answer, PAGE_SIZE, pageOffset, type Stop, translate } from '../../machine/index.ts';
import { ARGUMENT_SIZE, SPARE_SLOT } from './agent.ts';
import { SLOT } from './agent-code.ts';
import { SystemError } from './libc.ts';
import type { VmmMemory } from './memory.ts';
import type { Memslot } from './memslots.ts';
import { emulationFailureCall, putRequest, REQUESTS_AT_ONCE, slotCalls } from './slot-calls.ts';
import { restoration, type SlotRequest, SplitSlot } from './split-slot.ts';
import type { KvmVcpu } from './vcpu.ts';
import type { VcpuThread } from './vcpu-thread.ts';
import type { Vmm } from './vmm.ts';

/** A page stop whose virtual address is not known. */
const NO_GVA = (1n << 64n) - 1n;
/** The table that the agent puts the pages back from: a header, then one request each. */
const REQUEST_SIZE = kvmMemoryRegion.size;
const MOST_PAGES = ARGUMENT_SIZE / REQUEST_SIZE - 1;
/** Where the exit of an access has its bytes. */
const DATA = kvmMmioExit.offsetOf('data');
/** More accesses than any instruction makes. */
const MOST_FRAGMENTS = 64;
/** How far the last byte of the longest instruction is from its first. */
const INSTRUCTION_END = 14n;
/** The highest slot number that every kernel has (KVM_USER_MEM_SLOTS); VMMs count from 0. */
const HIGHEST_SLOT = 508;

type PageStop = Extract<Stop, { kind: 'page' }>;

interface AwayPage {
  readonly gpa: number;
  readonly split: SplitSlot;
  access: number;
}

interface Accessed {
  readonly gpa: number;
  readonly hva: number;
  readonly length: number;
  readonly write: boolean;
}

/** What holds the VM still while its slots are changed. */
export interface Stillness {
  /** Runs something while no vCPU is in the guest. */
  still<T>(run: () => T): T;
  /** Writes down how the slots are made what they were. */
  journal(requests: readonly SlotRequest[]): void;
  /** The slots that the kernel has. */
  slots(): readonly Memslot[];
}

/**
 * Traps of all accesses to a page, by taking it out of the VM's memory slots: reads and writes leave the guest as
 * accesses to a device, which are carried out on the page; fetches fail, and are made again with the page back for one
 * instruction. The VMM's own mapping stays as it is.
 */
export class PageSlots {
  readonly #vmm: Vmm;
  readonly #memory: VmmMemory;
  readonly #stillness: Stillness;
  readonly #splits: SplitSlot[] = [];
  readonly #pages = new Map<number, AwayPage>();
  /** Every page that was ever away: an exit because of it may be told later than it is back. */
  readonly #known = new Map<number, SplitSlot>();
  /** vCPUs that are stepped, and the pages that are back for it. */
  readonly #stepping = new Map<KvmVcpu, ReadonlySet<number>>();
  /** Writes whose instruction has ended without them. */
  readonly #unwritten = new Map<KvmVcpu, { readonly hva: number; readonly data: Uint8Array } | undefined>();
  /** The VM's descriptor in the VMM. */
  vmFd = -1;

  constructor(vmm: Vmm, memory: VmmMemory, stillness: Stillness) {
    this.#vmm = vmm;
    this.#memory = memory;
    this.#stillness = stillness;
  }

  get active(): boolean {
    return this.#pages.size > 0;
  }

  /** What is left to be done for the slots to be what they were. */
  get undoing(): readonly SlotRequest[] {
    return restoration(this.#splits);
  }

  has(gpa: number): boolean {
    return this.#pages.has(gpa);
  }

  /** Slots of the VM as they are without this. */
  whole(slots: readonly Memslot[]): readonly Memslot[] {
    if (this.#splits.length === 0) return slots;
    const others = slots.filter(({ gpa }) => !this.#splits.some((split) => split.has(gpa)));
    const originals = this.#splits.map(({ original }) => ({
      ...original,
      readonly: (original.flags & KVM_MEM.READONLY) !== 0,
    }));
    return [...others, ...originals].sort((a, b) => a.gpa - b.gpa);
  }

  /** Takes a page away, by way of a held thread, or changes which accesses to it are let through. */
  take(gpa: number, access: number, thread: VcpuThread): void {
    const known = this.#pages.get(gpa);
    if (known) {
      known.access = access;
      return;
    }
    if (this.#pages.size >= MOST_PAGES) {
      throw new KvmiError('E_NO_MEMORY', `at most ${MOST_PAGES} pages can be trapped for reads or fetches`);
    }
    const slots = this.#stillness.slots();
    const split = this.#splits.find((each) => each.has(gpa)) ?? new SplitSlot(splittable(slots, gpa));
    const used = new Set([
      ...slots.map(({ slot }) => slot),
      ...this.#splits.flatMap(({ numbers }) => numbers),
    ]);
    const requests = split.cut(gpa, () => unused(used));
    if (!this.#splits.includes(split)) this.#splits.push(split);
    this.#known.set(gpa, split);
    this.#pages.set(gpa, { gpa, split, access });
    this.#journal();
    this.#stillness.still(() => {
      const { slot } = thread;
      this.#putTable();
      const calls = slotCalls(slot, this.vmFd, requests);
      const results = thread.call([emulationFailureCall(slot, this.vmFd, true), ...calls]);
      const failed = results.find((result) => result < 0n);
      if (failed !== undefined) {
        this.#restore(thread);
        throw new SystemError('taking a page out of the memory slots of the VM', Number(-failed));
      }
    });
  }

  /** Puts a page back for good, by way of a held thread. */
  giveBack(gpa: number, thread: VcpuThread): void {
    const page = this.#pages.get(gpa);
    if (!page) return;
    const { split } = page;
    this.#stillness.still(() => {
      // First the page: what is accessed is never less than it is to be.
      if (!this.#isBack(gpa)) this.#request(thread, [split.pages.get(gpa)!]);
      const requests = split.heal(gpa, false);
      this.#pages.delete(gpa);
      this.#putTable();
      this.#request(thread, requests);
      if (!this.active) thread.call([emulationFailureCall(thread.slot, this.vmFd, false)]);
    });
    if (split.pages.size === 0) this.#splits.splice(this.#splits.indexOf(split), 1);
    this.#journal();
  }

  /** Puts everything back, by way of a held thread, and carries out what waits. */
  giveBackAll(thread: VcpuThread, vcpus: readonly KvmVcpu[]): void {
    if (!this.active) return;
    this.#stillness.still(() => this.#restore(thread));
    for (const vcpu of vcpus) {
      if (vcpu.thread?.phase !== 'held' || this.settled(vcpu, true)) continue;
      this.carryOut(vcpu);
    }
  }

  #restore(thread: VcpuThread): void {
    const requests = restoration(this.#splits);
    const deletions = requests.filter(({ size }) => size === 0);
    // Those of pages that are away are refused.
    this.#ask(thread, deletions);
    this.#request(thread, requests.slice(deletions.length));
    thread.call([emulationFailureCall(thread.slot, this.vmFd, false)]);
    this.#splits.length = 0;
    this.#putTable();
    this.#journal();
  }

  #request(thread: VcpuThread, requests: readonly SlotRequest[]): void {
    const failed = this.#ask(thread, requests).find((result) => result < 0n);
    if (failed !== undefined) throw new SystemError('changing the memory slots of the VM', Number(-failed));
  }

  #ask(thread: VcpuThread, requests: readonly SlotRequest[]): bigint[] {
    const results: bigint[] = [];
    for (let i = 0; i < requests.length; i += REQUESTS_AT_ONCE) {
      const some = requests.slice(i, i + REQUESTS_AT_ONCE);
      results.push(...thread.call(slotCalls(thread.slot, this.vmFd, some)));
    }
    return results;
  }

  #journal(): void {
    this.#stillness.journal(restoration(this.#splits));
  }

  get #requests(): SlotRequest[] {
    return this.#splits.flatMap(({ pages }) => [...pages.values()]);
  }

  /** Tells the agent how pages are put back. */
  #putTable(): void {
    const { argument } = this.#vmm.agent!.slot(SPARE_SLOT);
    const requests = this.#requests;
    for (const [i, request] of requests.entries()) putRequest(argument, (i + 1) * REQUEST_SIZE, request);
    putU32(argument, 0, requests.length);
  }

  /** Tells the agent of a vCPU where the table is. */
  prepareEntry({ slot }: VcpuThread): void {
    putU64(slot.bytes, SLOT.pages, BigInt(this.#vmm.agent!.slot(SPARE_SLOT).argumentAddress));
    putU32(slot.bytes, SLOT.pagesFd, this.vmFd);
  }

  /** Whether the exit of a vCPU is because a page is away. */
  claims(vcpu: KvmVcpu): boolean {
    if (this.#known.size === 0) return false;
    const thread = vcpu.thread!;
    const { exitReason } = thread.page;
    // Where it fails with all pages back, it is not because of them.
    if (exitReason === KVM_EXIT.INTERNAL_ERROR) return !this.#hasAll(vcpu);
    return exitReason === KVM_EXIT.MMIO && this.#accessed(thread) !== undefined;
  }

  /** The page that an access is to. Writes to memory that is read-only are the VMM's. */
  #accessed({ page }: VcpuThread): Accessed | undefined {
    const { phys_addr, len, is_write } = kvmMmioExit.read(page.exit, 0);
    const gpa = Number(phys_addr);
    const original = this.#known.get(gpa - pageOffset(gpa))?.original;
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
    const page = this.#pages.get(gpa - pageOffset(gpa));
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
      const page = gpa === undefined ? undefined : this.#pages.get(gpa - pageOffset(gpa));
      return page && !this.#stepping.get(vcpu)?.has(page.gpa) ? [{ gva, page }] : [];
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
    const needed =
      fetched.length > 0 ? [...(this.#stepping.get(vcpu) ?? []), ...fetched] : this.#pages.keys();
    this.#setBack(vcpu, new Set(needed));
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

  /** The vCPU has done its step. */
  stepped(vcpu: KvmVcpu): void {
    if (this.#stepping.has(vcpu)) this.#setBack(vcpu, new Set());
    this.#stepping.delete(vcpu);
  }

  #isBack(gpa: number): boolean {
    return [...this.#stepping.values()].some((pages) => pages.has(gpa));
  }

  #hasAll(vcpu: KvmVcpu): boolean {
    const pages = this.#stepping.get(vcpu);
    return pages !== undefined && [...this.#pages.keys()].every((gpa) => pages.has(gpa));
  }

  /** Puts pages back for a vCPU, and takes others away again: each is a slot of its own, so that nothing else changes. */
  #setBack(vcpu: KvmVcpu, wanted: ReadonlySet<number>): void {
    const all = [...this.#pages.values()];
    const before = new Set(all.filter(({ gpa }) => this.#isBack(gpa)));
    this.#stepping.set(vcpu, wanted);
    const requests = all.flatMap((page) => {
      const isBack = this.#isBack(page.gpa);
      if (isBack === before.has(page)) return [];
      const request = page.split.pages.get(page.gpa)!;
      return [isBack ? request : { ...request, size: 0 }];
    });
    this.#request(vcpu.thread!, requests);
  }

  /** There is no VM any more, or no trap. */
  close(): void {
    this.#pages.clear();
    this.#known.clear();
    this.#splits.length = 0;
    this.#stepping.clear();
    this.#unwritten.clear();
  }
}

function bytesOf({ page }: VcpuThread, { length }: Accessed): Uint8Array {
  return page.exit.slice(DATA, DATA + length);
}

function splittable(slots: readonly Memslot[], gpa: number): Memslot {
  const slot = slots.find((each) => gpa >= each.gpa && gpa < each.gpa + each.size);
  if (!slot)
    throw new KvmiError('E_NOT_BACKED', `there is no memory at guest-physical 0x${gpa.toString(16)}`);
  if (slot.flags === undefined) {
    throw new KvmiError(
      'E_NO_MEMSLOTS',
      'the kernel does not tell the memory slots of the VM with all that they are',
      {
        hint: 'Run as root on a kernel with BTF.',
      },
    );
  }
  if ((slot.flags & ~KVM_MEM.READONLY) === 0) return slot;
  throw new KvmiError('E_BUSY', 'the VMM has the writes to this memory logged, or has it private', {
    hint: 'A log, as migrations and displays keep it, would be lost with the slot. Try again when they are over.',
  });
}

function unused(used: Set<number>): number {
  for (let slot = HIGHEST_SLOT; slot > 0; slot--) {
    if (used.has(slot)) continue;
    used.add(slot);
    return slot;
  }
  throw new KvmiError('E_NO_MEMORY', 'the VM has no memory slot left');
}

/** What a tool shows instead of memory. Virtual and physical addresses have the same place in their pages. */
function show(data: Uint8Array, gpa: number, { gva, bytes }: NonNullable<Answer['substitute']>): void {
  const start = Number(gva & 0xfffn);
  for (let i = 0; i < data.length; i++) {
    const byte = bytes[(pageOffset(gpa + i) - start + PAGE_SIZE) % PAGE_SIZE];
    if (byte !== undefined) data[i] = byte;
  }
}

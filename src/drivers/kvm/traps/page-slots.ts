import { putU32, putU64 } from '../../../abi/bytes.ts';
import { KVM_MEM, kvmMemoryRegion } from '../../../abi/kvm.ts';
import { KvmiError } from '../../../error.ts';
import { pageOffset } from '../../../machine/index.ts';
import { SystemError } from '../../../system/libc.ts';
import type { Memslot } from '../slots/memslots.ts';
import { emulationFailureCall, REQUESTS_AT_ONCE, slotCalls } from '../slots/slot-calls.ts';
import { putRequest, type SlotRequest } from '../slots/slot-request.ts';
import { restoration, SplitSlot } from '../slots/split-slot.ts';
import { ARGUMENT_SIZE, SPARE_SLOT } from '../thread/agent.ts';
import { SLOT } from '../thread/agent-code.ts';
import type { VcpuThread } from '../thread/vcpu-thread.ts';
import type { Vmm } from '../thread/vmm.ts';
import type { KvmVcpu } from '../vcpu.ts';

/** The table that the agent puts the pages back from: a header, then one request each. */
const REQUEST_SIZE = kvmMemoryRegion.size;
const MOST_PAGES = ARGUMENT_SIZE / REQUEST_SIZE - 1;
/** The highest slot number that every kernel has (KVM_USER_MEM_SLOTS); VMMs count from 0. */
const HIGHEST_SLOT = 508;

/** A page that is not in the memory slots of the VM. */
export interface AwayPage {
  readonly gpa: number;
  readonly split: SplitSlot;
  /** The accesses that are let through. */
  access: number;
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
 * Pages that are taken out of the memory slots of a VM, so that every access to them leaves the guest. The VMM's own
 * mapping stays as it is.
 */
export class PageSlots {
  readonly #vmm: Vmm;
  readonly #stillness: Stillness;
  readonly #splits: SplitSlot[] = [];
  readonly #pages = new Map<number, AwayPage>();
  /** Every page that was ever away: an exit because of it may be told later than it is back. */
  readonly #known = new Map<number, SplitSlot>();
  /** vCPUs that are stepped, and the pages that are back for it. */
  readonly #stepping = new Map<KvmVcpu, ReadonlySet<number>>();
  /** The VM's descriptor in the VMM. */
  vmFd = -1;

  constructor(vmm: Vmm, stillness: Stillness) {
    this.#vmm = vmm;
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

  /** The page at an address that is away. */
  at(gpa: number): AwayPage | undefined {
    return this.#pages.get(gpa - pageOffset(gpa));
  }

  /** The slot that the page at an address has been taken out of, if it ever was. */
  slotOf(gpa: number): SlotRequest | undefined {
    return this.#known.get(gpa - pageOffset(gpa))?.original;
  }

  /** Whether any page was ever away. */
  get used(): boolean {
    return this.#known.size > 0;
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
        throw new SystemError(
          'taking a page out of the memory slots of the VM',
          Number(-failed),
          'It needs a kernel with KVM_CAP_EXIT_ON_EMULATION_FAILURE.',
        );
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

  /** Puts everything back, by way of a held thread. */
  giveBackAll(thread: VcpuThread): void {
    if (this.active) this.#stillness.still(() => this.#restore(thread));
  }

  #restore(thread: VcpuThread): void {
    const requests = restoration(this.#splits);
    const deletions = requests.filter(({ size }) => size === 0);
    // Those of pages that are away are refused.
    this.#ask(thread, deletions);
    this.#request(thread, requests.slice(deletions.length));
    thread.call([emulationFailureCall(thread.slot, this.vmFd, false)]);
    this.#splits.length = 0;
    this.#pages.clear();
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

  /** The vCPU has done its step. */
  stepped(vcpu: KvmVcpu): void {
    if (this.#stepping.has(vcpu)) this.#setBack(vcpu, new Set());
    this.#stepping.delete(vcpu);
  }

  #isBack(gpa: number): boolean {
    return [...this.#stepping.values()].some((pages) => pages.has(gpa));
  }

  /** Whether a page is back for a vCPU that is stepped. */
  isBackFor(vcpu: KvmVcpu, gpa: number): boolean {
    return this.#stepping.get(vcpu)?.has(gpa) === true;
  }

  /** Whether a vCPU is stepped with all pages back. */
  hasAll(vcpu: KvmVcpu): boolean {
    const pages = this.#stepping.get(vcpu);
    return pages !== undefined && [...this.#pages.keys()].every((gpa) => pages.has(gpa));
  }

  /** Puts pages back for one step of a vCPU, besides those that are; all of them without `gpas`. */
  bringBack(vcpu: KvmVcpu, gpas: readonly number[] = [...this.#pages.keys()]): void {
    this.#setBack(vcpu, new Set([...(this.#stepping.get(vcpu) ?? []), ...gpas]));
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
  }
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

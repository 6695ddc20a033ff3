import { type Awaitable, isPending, then } from '../../../awaitable.ts';
import { ACCESS, PAGE_SIZE, type Trap } from '../../../machine/index.ts';
import { GuardProcess } from '../../../system/guard-process.ts';
import { Journal } from '../guards/journal.ts';
import type { VmmMemory } from '../slots/memory.ts';
import type { VcpuThread } from '../thread/vcpu-thread.ts';
import type { Vmm } from '../thread/vmm.ts';
import { type KvmVcpu, nearestVcpu } from '../vcpu.ts';
import { DebugRegisters } from './debug-registers.ts';
import { type DebugRequest, putDebugRequest } from './guest-debug.ts';
import { MsrFilter } from './msr-filter.ts';
import { PageAccesses } from './page-accesses.ts';
import { PageSlots, type Stillness } from './page-slots.ts';
import { PageTraps } from './page-traps.ts';

const GUARD = new URL('../guards/guard-main.js', import.meta.url);

/** What is armed on one vCPU. */
interface Armed {
  readonly debug: { -readonly [K in keyof DebugRequest]: DebugRequest[K] };
  readonly msrs: Set<number>;
}

/** The traps that stock KVM has, on the vCPUs of one VM. */
export class Traps {
  readonly pages: PageTraps;
  readonly hardware: DebugRegisters;
  /** Pages whose reads or fetches are trapped, too. */
  readonly slots: PageSlots;
  readonly accesses: PageAccesses;
  #vmFd = -1;
  readonly #vmm: Vmm;
  readonly #armed = new Map<KvmVcpu, Armed>();
  readonly #msrs = new MsrFilter();
  #guard: Promise<GuardProcess> | undefined;
  #journal: Journal | undefined;
  /** Resolves when the accesses of pages are what they were asked to be. */
  #changing: Promise<void> | undefined;
  /** Every vCPU is interposed on because pages are away. */
  #interposed = false;

  /** `permit` throws when no breakpoint may be set. */
  constructor(
    vmm: Vmm,
    memory: VmmMemory,
    vcpus: () => readonly KvmVcpu[],
    permit: () => void,
    vm: Omit<Stillness, 'journal'>,
  ) {
    this.#vmm = vmm;
    this.pages = new PageTraps(vmm, memory, vcpus);
    const journal: Stillness['journal'] = (requests) => {
      if (this.#journal) this.#journal.slots = requests;
    };
    this.slots = new PageSlots(vmm, { ...vm, journal });
    this.accesses = new PageAccesses(vmm, memory, this.slots);
    this.hardware = new DebugRegisters((addresses) => {
      permit();
      this.#setHardware(addresses);
    });
  }

  /** The VM's descriptor in the VMM. */
  get vmFd(): number {
    return this.#vmFd;
  }

  set vmFd(fd: number) {
    this.#vmFd = fd;
    this.slots.vmFd = fd;
  }

  /** A vCPU is new: what is armed on all of them is armed on it. */
  added(vcpu: KvmVcpu): void {
    const { addresses } = this.hardware;
    const debug = { singlestep: false, software: false, hardware: addresses, stepOver: false };
    this.#armed.set(vcpu, { debug, msrs: new Set() });
    vcpu.armedTraps = Number(addresses.length > 0) + Number(this.#msrs.active) + Number(this.#interposed);
    if (vcpu.armed) vcpu.kick();
  }

  #of(vcpu: KvmVcpu): Armed {
    return this.#armed.get(vcpu)!;
  }

  isSingleStepping(vcpu: KvmVcpu): boolean {
    return this.#of(vcpu).debug.singlestep;
  }

  /** Whether a debug register stops the vCPU where it is. */
  isAtBreakpoint(vcpu: KvmVcpu): boolean {
    return this.#of(vcpu).debug.hardware.includes(vcpu.instructionPointer());
  }

  isMsrTrapped(vcpu: KvmVcpu, msr: number): boolean {
    return this.#of(vcpu).msrs.has(msr);
  }

  arm(trap: Trap, vcpu: KvmVcpu | undefined): Awaitable<void> {
    switch (trap.kind) {
      case 'singlestep':
        return this.#setDebug(vcpu!, 'singlestep', true);
      case 'breakpoint':
        return then(this.#guarded(), () => this.#setDebug(vcpu!, 'software', true));
      case 'msr':
        return this.#armMsr(vcpu!, trap.msr);
      case 'page':
        return this.#inOrder(() => this.#armPage(trap));
    }
  }

  disarm(trap: Trap, vcpu: KvmVcpu | undefined): Awaitable<void> {
    switch (trap.kind) {
      case 'singlestep':
        return this.#setDebug(vcpu!, 'singlestep', false);
      case 'breakpoint':
        return this.#setDebug(vcpu!, 'software', false);
      case 'msr':
        return this.#disarmMsr(vcpu!, trap.msr);
      case 'page':
        return this.#inOrder(() => this.#armPage({ ...trap, access: ACCESS.all }));
    }
  }

  /** What is asked of pages is done in the order in which it was. */
  #inOrder(change: () => Awaitable<void>): Awaitable<void> {
    const done = this.#changing ? this.#changing.then(change) : change();
    if (!isPending(done)) return done;
    const over: Promise<void> = Promise.resolve(done)
      .catch(() => undefined)
      .then(() => {
        if (this.#changing === over) this.#changing = undefined;
      });
    this.#changing = over;
    return done;
  }

  /** What is only not to be written to is trapped by write protection; else the page is taken away. */
  #armPage(trap: Extract<Trap, { kind: 'page' }>): Awaitable<void> {
    const gpa = trap.gfn * PAGE_SIZE;
    const others = ACCESS.read | ACCESS.execute;
    if ((trap.access & others) === others) return then(this.#givePageBack(gpa), () => this.pages.arm(trap));
    this.pages.disarm(trap);
    return this.#guarded()
      .then(() => this.#interposeOnAll())
      .then(() => this.#withHeld((vcpu) => this.slots.take(gpa, trap.access, vcpu.thread!)))
      .catch((error) => {
        this.#leaveOut();
        throw error;
      });
  }

  #givePageBack(gpa: number): Awaitable<void> {
    if (!this.slots.has(gpa)) return;
    return this.#withHeld((vcpu) => {
      this.slots.giveBack(gpa, vcpu.thread!);
      this.#leaveOut();
    });
  }

  /** Runs something in a vCPU that is outside the guest. */
  #withHeld(run: (vcpu: KvmVcpu) => void): Awaitable<void> {
    const vcpu = nearestVcpu([...this.#armed.keys()]);
    return vcpu.whenHeld(() => run(vcpu));
  }

  /** Every vCPU that runs is interposed on from then on. */
  async #interposeOnAll(): Promise<void> {
    if (!this.#interposed) for (const vcpu of this.#armed.keys()) changeArmed(vcpu, 1);
    this.#interposed = true;
    const running = [...this.#armed.keys()].filter(
      ({ thread, fd }) => thread ?? this.#vmm.threadOf(fd) !== undefined,
    );
    await Promise.all(running.map((vcpu) => vcpu.whenHeld(() => undefined)));
  }

  #leaveOut(): void {
    if (!this.#interposed || this.slots.active) return;
    this.#interposed = false;
    for (const vcpu of this.#armed.keys()) changeArmed(vcpu, -1);
  }

  #setDebug(vcpu: KvmVcpu, what: 'singlestep' | 'software', on: boolean): void {
    const { debug } = this.#of(vcpu);
    if (debug[what] === on) return;
    debug[what] = on;
    changeArmed(vcpu, on ? 1 : -1);
  }

  /** Every vCPU stops at these linear addresses, which are one more or one less than before. */
  #setHardware(addresses: readonly bigint[]): void {
    for (const [vcpu, { debug }] of this.#armed) {
      const was = debug.hardware.length > 0;
      debug.hardware = addresses;
      changeArmed(vcpu, Number(addresses.length > 0) - Number(was));
    }
  }

  /** One instruction beyond something that has to be disarmed for it. */
  stepOver(vcpu: KvmVcpu): void {
    const { debug } = this.#of(vcpu);
    if (debug.stepOver) return;
    debug.stepOver = true;
    vcpu.armedTraps++;
    applyLater(vcpu);
  }

  steppedOver(vcpu: KvmVcpu): void {
    const { debug } = this.#of(vcpu);
    if (!debug.stepOver) return;
    debug.stepOver = false;
    vcpu.armedTraps--;
    this.pages.stepped(vcpu);
    this.slots.stepped(vcpu);
    applyLater(vcpu);
  }

  /** Writes what is armed on a vCPU where its agent takes it from. */
  prepareEntry(vcpu: KvmVcpu): void {
    const { slot } = vcpu.thread!;
    putDebugRequest(slot.bytes, this.#of(vcpu).debug, this.#msrs.active);
    this.#msrs.put(slot, this.vmFd, this.#armed.size === 1);
    this.slots.prepareEntry(vcpu.thread!);
  }

  #armMsr(vcpu: KvmVcpu, msr: number): Awaitable<void> {
    const { msrs } = this.#of(vcpu);
    if (msrs.has(msr)) return;
    const fresh = this.#msrs.add(msr);
    msrs.add(msr);
    if (!fresh) return;
    return this.#guarded().then(
      () => this.#setFilter(vcpu),
      (error) => {
        this.#msrs.remove(msr);
        msrs.delete(msr);
        throw error;
      },
    );
  }

  #disarmMsr(vcpu: KvmVcpu, msr: number): Awaitable<void> {
    if (!this.#of(vcpu).msrs.delete(msr) || !this.#msrs.remove(msr)) return;
    return vcpu.whenHeld(() => {
      this.#applyFilter(vcpu.thread!);
      for (const each of this.#armed.keys()) changeArmed(each, -1);
    });
  }

  /** The filter is the VM's: every other vCPU has to be interposed on before it is set. */
  #setFilter(vcpu: KvmVcpu): Awaitable<void> {
    const others = [...this.#armed.keys()].filter((other) => other !== vcpu);
    for (const other of others) changeArmed(other, 1);
    const traced = others.filter(({ thread }) => thread);
    const set = () =>
      vcpu.whenHeld(() => {
        changeArmed(vcpu, 1);
        this.#applyFilter(vcpu.thread!);
      });
    if (traced.length === 0) return set();
    return Promise.all(traced.map((other) => other.whenHeld(() => undefined))).then(set);
  }

  #applyFilter(thread: VcpuThread): void {
    if (this.#journal && this.#msrs.active) this.#journal.msrFilter = true;
    this.#msrs.apply(thread, this.vmFd);
    if (this.#journal && !this.#msrs.active) this.#journal.msrFilter = false;
  }

  /** Starts the process that cleans up after this one. */
  #guarded(): Promise<GuardProcess> {
    this.#journal ??= new Journal();
    this.#guard ??= GuardProcess.start(GUARD, [this.#vmm.pid, this.vmFd], this.#journal.fd).catch((error) => {
      this.#guard = undefined;
      throw error;
    });
    return this.#guard;
  }

  /** What is written to guest memory may be a breakpoint, and may be on a page that is trapped. */
  beforeWrite(hva: number, bytes: Uint8Array): () => void {
    const journalled = this.#guard && this.#journal?.beforeWrite(hva, bytes, this.#vmm.memory);
    const opened = this.pages.beforeWrite(hva, bytes.length);
    return () => {
      opened?.();
      journalled?.();
    };
  }

  /** Takes back what the VM has armed, by way of a held thread. */
  clearVm(thread: VcpuThread): void {
    this.slots.giveBackAll(thread);
    for (const vcpu of this.#armed.keys()) this.accesses.abandon(vcpu);
    if (this.#msrs.active) this.clearFilter(thread);
  }

  /** Nothing is armed: vCPUs go on as their VMM runs them. */
  disarmed(): void {
    for (const vcpu of this.#armed.keys()) vcpu.armedTraps = 0;
  }

  /** Removes the MSR filter of the VM by way of a held thread, whoever has set it. */
  clearFilter(thread: VcpuThread): void {
    this.#msrs.clear();
    this.#applyFilter(thread);
  }

  /** Takes back what needs no thread; what vCPUs have armed goes with their threads. Returns whether `clearVm` is left. */
  clear(): boolean {
    for (const [vcpu, { debug, msrs }] of this.#armed) {
      Object.assign(debug, { singlestep: false, software: false, hardware: [], stepOver: false });
      msrs.clear();
      // Until pages that are away are back, no vCPU may run without the agent.
      vcpu.armedTraps = Number(this.slots.active);
      applyLater(vcpu);
    }
    this.hardware.clear();
    this.pages.close();
    this.#journal?.restore(this.#vmm.memory);
    this.#interposed = false;
    return this.#msrs.active || this.slots.active;
  }

  /** Nothing is armed any more, or there is no VM any more. */
  close(): void {
    this.pages.close();
    this.slots.close();
    this.#interposed = false;
    this.#changing = undefined;
    this.#msrs.clear();
    void this.#guard?.then((guard) => guard.stop());
    this.#guard = undefined;
    this.#journal?.close();
    this.#journal = undefined;
  }
}

function applyLater({ thread }: KvmVcpu): void {
  if (thread) thread.changed = true;
}

function changeArmed(vcpu: KvmVcpu, by: number): void {
  vcpu.armedTraps += by;
  applyLater(vcpu);
  vcpu.kick();
}

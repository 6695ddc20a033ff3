import { type Awaitable, then } from '../../awaitable.ts';
import type { Trap } from '../../machine/index.ts';
import { DebugRegisters } from './debug-registers.ts';
import { Guard } from './guard.ts';
import { type DebugRequest, putDebugRequest } from './guest-debug.ts';
import { Journal } from './journal.ts';
import type { VmmMemory } from './memory.ts';
import { MsrFilter } from './msr-filter.ts';
import { PageTraps } from './page-traps.ts';
import type { KvmVcpu } from './vcpu.ts';
import type { VcpuThread } from './vcpu-thread.ts';
import type { Vmm } from './vmm.ts';

/** What is armed on one vCPU. */
interface Armed {
  readonly debug: { -readonly [K in keyof DebugRequest]: DebugRequest[K] };
  readonly msrs: Set<number>;
}

/** The traps that stock KVM has, on the vCPUs of one VM. */
export class Traps {
  readonly pages: PageTraps;
  readonly hardware: DebugRegisters;
  /** The VM's descriptor in the VMM. */
  vmFd = -1;
  readonly #vmm: Vmm;
  readonly #armed = new Map<KvmVcpu, Armed>();
  readonly #msrs = new MsrFilter();
  #guard: Promise<Guard> | undefined;
  #journal: Journal | undefined;

  /** `permit` throws when no breakpoint may be set. */
  constructor(vmm: Vmm, memory: VmmMemory, vcpus: () => readonly KvmVcpu[], permit: () => void) {
    this.#vmm = vmm;
    this.pages = new PageTraps(vmm, memory, vcpus);
    this.hardware = new DebugRegisters((addresses) => {
      permit();
      this.#setHardware(addresses);
    });
  }

  /** A vCPU is new: what is armed on all of them is armed on it. */
  added(vcpu: KvmVcpu): void {
    const { addresses } = this.hardware;
    const debug = { singlestep: false, software: false, hardware: addresses, stepOver: false };
    this.#armed.set(vcpu, { debug, msrs: new Set() });
    vcpu.armedTraps = Number(addresses.length > 0) + Number(this.#msrs.active);
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
        return this.pages.arm(trap);
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
        return this.pages.disarm(trap);
    }
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
    applyLater(vcpu);
  }

  /** Writes what is armed on a vCPU where its agent takes it from. */
  prepareEntry(vcpu: KvmVcpu): void {
    const { slot } = vcpu.thread!;
    putDebugRequest(slot.bytes, this.#of(vcpu).debug, this.#msrs.active);
    this.#msrs.put(slot, this.vmFd, this.#armed.size === 1);
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
  #guarded(): Promise<Guard> {
    this.#journal ??= new Journal();
    this.#guard ??= Guard.start(this.#vmm.pid, this.vmFd, this.#journal).catch((error) => {
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

  /** Removes the MSR filter of the VM by way of a held thread, whoever has set it. */
  clearFilter(thread: VcpuThread): void {
    this.#msrs.clear();
    this.#applyFilter(thread);
  }

  /** Takes back what needs no thread; what vCPUs have armed goes with their threads. Returns whether the filter is left. */
  clear(): boolean {
    for (const [vcpu, { debug, msrs }] of this.#armed) {
      Object.assign(debug, { singlestep: false, software: false, hardware: [], stepOver: false });
      msrs.clear();
      vcpu.armedTraps = 0;
      applyLater(vcpu);
    }
    this.hardware.clear();
    this.pages.close();
    this.#journal?.restore(this.#vmm.memory);
    return this.#msrs.active;
  }

  /** Nothing is armed any more, or there is no VM any more. */
  close(): void {
    this.pages.close();
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

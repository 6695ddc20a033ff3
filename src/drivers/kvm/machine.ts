import { KVM_EXIT } from '../../abi/kvm.ts';
import { SIGNAL } from '../../abi/linux.ts';
import { type Awaitable, attempt, then } from '../../awaitable.ts';
import {
  attachedAlready,
  type Capabilities,
  CONTINUE,
  type Machine,
  type MachineHandler,
  type MachineProbes,
  requireCapability,
  requireTrap,
  type Trap,
} from '../../machine/index.ts';
import { libc } from '../../system/libc.ts';
import { startTimeOf, threads, tracerOf } from '../../system/proc.ts';
import { watchEnd } from '../../system/process-end.ts';
import { pump } from '../../system/pump.ts';
import { UNSAFE, UNSAFE_MSR, UNSAFE_WHEN_CONFINED } from './capabilities.ts';
import { nameOf, uuidOf } from './identity.ts';
import { VmmMemory } from './slots/memory.ts';
import type { Memslot } from './slots/memslots.ts';
import { undoSlots } from './slots/slot-undo.ts';
import type { VmFile } from './slots/vm-file.ts';
import { Threads } from './thread/threads.ts';
import { tracedAlready } from './thread/tracee.ts';
import type { HoldReason, VcpuThread } from './thread/vcpu-thread.ts';
import { Vmm } from './thread/vmm.ts';
import { DEBUG_REGISTERS } from './traps/debug-registers.ts';
import { completeMsrWrite, StopServer } from './traps/stop-server.ts';
import { Traps } from './traps/traps.ts';
import { KvmVcpu, type VcpuOwner } from './vcpu.ts';

/** How often it is looked for new vCPUs, in ms. */
const DISCOVERY_INTERVAL_MS = 200;

export interface KvmMachineOptions {
  readonly capabilities: Capabilities;
  /** Allows what may harm the VM when this process is killed. */
  readonly unsafe: boolean;
  /** Lifts the seccomp filters of threads while they are traced. */
  readonly liftFilters: boolean;
  /** Where the VM's memory is in its VMM. */
  readonly memslots: (vm: VmFile) => readonly Memslot[];
}

/** A VM of another process on stock KVM. */
export class KvmMachine implements Machine, VcpuOwner {
  readonly name: string;
  readonly uuid: Uint8Array;
  readonly startTime: number;
  readonly memory: VmmMemory;
  /** @internal */
  readonly vmm: Vmm;
  readonly #capabilities: Capabilities;
  readonly #unsafe: boolean;
  readonly #vcpus: KvmVcpu[] = [];
  readonly #traps: Traps;
  readonly #threads: Threads;
  readonly #stops: StopServer;
  #detaching = false;
  #discovery: NodeJS.Timeout | undefined;
  #stopPolling: (() => void) | undefined;
  #stopWatching: (() => void) | undefined;

  /** @internal */
  constructor(file: VmFile, options: KvmMachineOptions) {
    this.vmm = new Vmm(file, options.liftFilters);
    const { pid } = file;
    this.name = nameOf(pid);
    this.uuid = uuidOf(pid, file.ownersDescriptor() ?? 0);
    this.startTime = startTimeOf(pid);
    this.#capabilities = options.capabilities;
    this.#unsafe = options.unsafe;
    this.memory = new VmmMemory(
      this.vmm.memory,
      () => this.#traps.slots.whole(options.memslots(file)),
      (hva, bytes) => this.#traps.beforeWrite(hva, bytes),
    );
    this.#threads = new Threads(this.vmm, (error) => this.#fail(error));
    this.#traps = new Traps(
      this.vmm,
      this.memory,
      () => this.vcpus,
      () => requireCapability(this.capabilities, 'singlestep'),
      {
        still: (run) => this.#threads.still(run, () => this.#traps.pages.serve()),
        slots: () => options.memslots(file),
      },
    );
    this.#stops = new StopServer(this.#traps, this.memory, this.#threads.linger);
    this.#discover();
  }

  get capabilities(): Capabilities {
    if (this.#unsafe) return this.#capabilities;
    const safe = { ...this.#capabilities, ...UNSAFE };
    if (this.#threads.confined) return { ...safe, ...UNSAFE_WHEN_CONFINED };
    return this.#vcpus.length <= 1 ? safe : { ...safe, msr: UNSAFE_MSR };
  }

  readonly probes: MachineProbes = {
    kind: 'debug-registers',
    count: DEBUG_REGISTERS,
    set: (address, hit) => then(this.#knowConfinement(), () => this.#traps.hardware.set(address, hit)),
  };

  get vcpus(): readonly KvmVcpu[] {
    if (!this.#stops.handler) this.#discover();
    return this.#vcpus;
  }

  /** Finds vCPUs that are new. */
  #discover(): KvmVcpu[] {
    const known = new Set(this.#vcpus.map(({ fd }) => fd));
    const fresh = this.vmm.vcpuDescriptors().filter((fd) => !known.has(fd));
    return fresh.map((fd) => {
      const vcpu = new KvmVcpu(this, this.#vcpus.length, fd);
      this.#vcpus.push(vcpu);
      this.#traps.added(vcpu);
      return vcpu;
    });
  }

  attach(handler: MachineHandler): void {
    if (this.#stops.handler) throw attachedAlready(this.name);
    const { pid, file } = this.vmm;
    const tracer = threads(pid)
      .map(tracerOf)
      .find((other) => other !== undefined && other !== process.pid);
    if (tracer !== undefined) throw tracedAlready(`process ${pid}`, tracer);
    this.#discover();
    this.#stopWatching = watchEnd(pid, () => this.#vmmGone());
    this.#stops.handler = handler;
    this.#traps.vmFd = file.ownersDescriptor() ?? -1;
    this.#stopPolling = pump.everyWait(() => this.#threads.poll());
    this.#discovery = setInterval(() => this.#announceNew(), DISCOVERY_INTERVAL_MS);
    this.#discovery.unref();
  }

  /** vCPUs that were created meanwhile, or a VMM that has closed its VM (as execve does). */
  #announceNew(): void {
    if (this.vmm.file.ownersDescriptor() === undefined) {
      this.#vmmGone();
      return;
    }
    for (const vcpu of this.#discover()) void this.#stops.handler?.vcpuCreated?.(vcpu);
  }

  /** The VMM ends, or has closed its VM and lives on. */
  #vmmGone(): void {
    const { handler } = this.#stops;
    this.#detaching = true;
    this.#threads.letGo(undefined, () => {});
    this.#forget();
    // Held, it would keep the guest's memory.
    this.vmm.file.release();
    handler?.closed();
  }

  /** Stops waiting for anything. */
  #forget(): void {
    clearInterval(this.#discovery);
    this.#stopWatching?.();
    this.#stopPolling?.();
    this.#stopWatching = undefined;
    this.#stopPolling = undefined;
    this.#threads.forget();
    for (const vcpu of this.#vcpus) vcpu.left();
    this.#traps.close();
    this.#stops.handler = undefined;
    this.#detaching = false;
  }

  #fail(error: unknown): void {
    const { handler } = this.#stops;
    this.detach();
    handler?.closed(error instanceof Error ? error : new Error(String(error)));
  }

  /** @internal */
  guarded(run: () => void): void {
    this.#threads.guarded(run);
  }

  /** @internal */
  search(vcpu: KvmVcpu): void {
    if (this.#stops.handler) this.#threads.search(vcpu);
  }

  /** @internal */
  gone(vcpu: KvmVcpu): void {
    this.#threads.gone(vcpu);
  }

  /** @internal */
  exitPending(vcpu: KvmVcpu): boolean {
    const pending = this.vmm.exitPending(vcpu.fd);
    if (pending !== undefined) return pending;
    // The reason stays what it was when KVM_RUN only completes an exit: it may be over, but may as well not.
    const reason = vcpu.thread?.page.exitReason;
    return reason === KVM_EXIT.IO || reason === KVM_EXIT.MMIO;
  }

  /** @internal */
  held(vcpu: KvmVcpu, reason: HoldReason): void {
    if (this.#detaching) {
      if (reason !== 'exit') return;
      completeMsrWrite(vcpu);
      this.#traps.accesses.abandon(vcpu);
      return;
    }
    const done = attempt<void>(
      () => this.#stops.serve(vcpu, reason),
      (error) => this.#fail(error),
    );
    void done;
  }

  /** @internal */
  claims(vcpu: KvmVcpu): boolean {
    return this.#traps.accesses.claims(vcpu);
  }

  /** @internal */
  settle(vcpu: KvmVcpu): void {
    this.#traps.accesses.settle(vcpu);
  }

  /** @internal */
  prepareEntry(vcpu: KvmVcpu): void {
    this.#traps.prepareEntry(vcpu);
  }

  arm(trap: Trap): Awaitable<void> {
    return then(this.#knowConfinement(), () => {
      requireTrap(this.capabilities, trap);
      return this.#traps.arm(trap, this.#vcpuOf(trap));
    });
  }

  /** Filters can only be read from a stopped thread: a VMM that has some is looked at before the first trap. */
  #knowConfinement(): Awaitable<void> {
    const vcpu = this.#vcpus[0];
    if (!vcpu || vcpu.thread || this.#unsafe || !this.vmm.filtered) return;
    return vcpu.whenHeld(() => undefined);
  }

  disarm(trap: Trap): Awaitable<void> {
    return this.#traps.disarm(trap, this.#vcpuOf(trap));
  }

  #vcpuOf(trap: Trap): KvmVcpu | undefined {
    return 'vcpu' in trap ? this.#vcpus[trap.vcpu.index] : undefined;
  }

  /** Finds out in advance what `attach` and the first stop need. @internal */
  prepare(): void {
    void this.vmm.site;
    for (const { fd } of this.#vcpus) this.vmm.threadOf(fd);
  }

  /** Removes an MSR filter that a process which was killed has left on the VM. */
  async clearMsrFilter(): Promise<void> {
    this.attach({ stop: () => CONTINUE, request: () => undefined, closed: () => undefined });
    const vcpu = this.#vcpus[0]!;
    await vcpu.whenHeld(() => this.#traps.clearFilter(vcpu.thread!));
    this.detach();
  }

  kill(): void {
    libc().kill(this.vmm.pid, SIGNAL.SIGTERM);
  }

  detach(): void {
    if (!this.#stops.handler) return;
    this.#detaching = true;
    for (const vcpu of this.#vcpus) vcpu.requested = false;
    const left = this.#traps.clear();
    const first = left ? (thread: VcpuThread) => this.#traps.clearVm(thread) : undefined;
    this.#threads.letGo(first, () => this.#traps.disarmed());
    this.#undoSlots();
    this.#forget();
  }

  /** Where no vCPU could be held: the VMM has paused them. */
  #undoSlots(): void {
    const { undoing } = this.#traps.slots;
    if (undoing.length === 0) return;
    try {
      undoSlots(this.vmm, this.#traps.vmFd, undoing);
    } catch {
      // The VMM is going.
    }
  }

  async close(): Promise<void> {
    this.detach();
    this.vmm.close();
    this.vmm.file.release();
  }
}

import { getU64, putU64 } from '../../abi/bytes.ts';
import { KVM_EXIT, kvmDebugExit, kvmMsrExit } from '../../abi/kvm.ts';
import { POLL, SIGNAL, SYS } from '../../abi/linux.ts';
import { STATE_SIZE } from '../../abi/state.ts';
import { type Awaitable, attempt, then } from '../../awaitable.ts';
import { KvmiError } from '../../error.ts';
import {
  ACCESS,
  type Answer,
  type Capabilities,
  CONTINUE,
  type Machine,
  type MachineHandler,
  requireCapability,
  type Stop,
  type Trap,
  translate,
} from '../../machine/index.ts';
import { SLOT } from './agent-code.ts';
import { isConfined } from './confinement.ts';
import { DebugRegisters } from './debug-registers.ts';
import { Guard } from './guard.ts';
import { type DebugRequest, DR6, putDebugRequest } from './guest-debug.ts';
import { nameOf, uuidOf } from './identity.ts';
import { check, libc } from './libc.ts';
import { Linger } from './linger.ts';
import { VmmMemory } from './memory.ts';
import type { Memslot } from './memslots.ts';
import { MsrFilter } from './msr-filter.ts';
import { PageTraps } from './page-traps.ts';
import { startTimeOf } from './proc.ts';
import { pump, type Watch } from './pump.ts';
import { RunPage } from './run-page.ts';
import type { Tracee } from './tracee.ts';
import { KvmVcpu, type VcpuOwner } from './vcpu.ts';
import { type HoldReason, VcpuThread } from './vcpu-thread.ts';
import type { VmFile } from './vm-file.ts';
import { Vmm } from './vmm.ts';

/** How often the thread of a vCPU is looked for that has to be traced, in ms. */
const SEARCH_INTERVAL_MS = 2;
/** How often it is looked for new vCPUs, in ms. */
const DISCOVERY_INTERVAL_MS = 200;
const BREAKPOINT_VECTOR = 3;

export interface KvmMachineOptions {
  readonly capabilities: Capabilities;
  /** Allows MSR traps on a VM with several vCPUs, too. */
  readonly unsafe: boolean;
  /** Lifts the seccomp filters of threads while they are traced. */
  readonly liftFilters: boolean;
  /** Where the VM's memory is in its VMM. */
  readonly memslots: (vm: VmFile) => readonly Memslot[];
}

interface VcpuState {
  readonly vcpu: KvmVcpu;
  readonly debug: { -readonly [K in keyof DebugRequest]: DebugRequest[K] };
  /** MSRs that are trapped on it. */
  readonly msrs: Set<number>;
  /** A thread that was asked to stop and is to be traced from then on. */
  joining: Tracee | undefined;
  searching: NodeJS.Timeout | undefined;
}

/** A VM of another process on stock KVM. */
export class KvmMachine implements Machine, VcpuOwner {
  readonly name: string;
  readonly uuid: Uint8Array;
  readonly startTime: number;
  readonly memory: VmmMemory;
  readonly vmm: Vmm;
  readonly #capabilities: Capabilities;
  readonly #unsafe: boolean;
  readonly #states: VcpuState[] = [];
  readonly #msrs: MsrFilter;
  readonly #pages: PageTraps;
  #handler: MachineHandler | undefined;
  #guard: Promise<Guard> | undefined;
  readonly hardwareBreakpoints: DebugRegisters;
  readonly #linger = new Linger();
  #detaching = false;
  /** A thread of a vCPU is. */
  #confined = false;
  #discovery: NodeJS.Timeout | undefined;
  #stopPolling: (() => void) | undefined;
  #exit: Watch | undefined;
  #pidfd = -1;
  /** The VM's descriptor in the VMM. */
  #vmFd = -1;

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
      () => options.memslots(file),
      (hva, size) => this.#pages.beforeWrite(hva, size),
    );
    this.#msrs = new MsrFilter();
    this.hardwareBreakpoints = new DebugRegisters((addresses) => {
      requireCapability(this.capabilities, 'singlestep');
      this.#applyBreakpoints(addresses);
    });
    this.#pages = new PageTraps(this.vmm, this.memory, () => this.vcpus);
    this.#discover();
  }

  /** With several vCPUs the MSR filter cannot be off whenever one of them is in its VMM. */
  get capabilities(): Capabilities {
    if (this.#unsafe) return this.#capabilities;
    if (this.#confined) return { ...this.#capabilities, ...UNSAFE_WHEN_CONFINED };
    return this.#states.length <= 1 ? this.#capabilities : { ...this.#capabilities, msr: UNSAFE_MSR };
  }

  get vcpus(): readonly KvmVcpu[] {
    if (!this.#handler) this.#discover();
    return this.#states.map(({ vcpu }) => vcpu);
  }

  /** Finds vCPUs that are new. */
  #discover(): KvmVcpu[] {
    const known = new Set(this.#states.map(({ vcpu }) => vcpu.fd));
    const fresh = this.vmm.vcpuDescriptors().filter((fd) => !known.has(fd));
    return fresh.map((fd) => {
      const vcpu = new KvmVcpu(this, this.#states.length, fd);
      const { addresses } = this.hardwareBreakpoints;
      const debug = { singlestep: false, software: false, hardware: addresses, stepOver: false };
      this.#states.push({ vcpu, debug, msrs: new Set(), joining: undefined, searching: undefined });
      if (addresses.length > 0) {
        vcpu.armedTraps++;
        vcpu.kick();
      }
      return vcpu;
    });
  }

  attach(handler: MachineHandler): void {
    if (this.#handler) throw new KvmiError('E_BUSY', `${this.name} is attached already`);
    this.#discover();
    this.#handler = handler;
    this.#vmFd = this.vmm.file.ownersDescriptor() ?? -1;
    this.#pidfd = check(
      Number(libc().syscall(SYS.pidfd_open, this.vmm.pid, 0, 0, 0, 0, 0)),
      `pidfd_open(${this.vmm.pid})`,
    );
    this.#exit = pump.watch(this.#pidfd, POLL.IN, () => this.#vmmGone());
    this.#stopPolling = pump.everyWait(() => this.#poll());
    this.#discovery = setInterval(() => this.#announceNew(), DISCOVERY_INTERVAL_MS);
    this.#discovery.unref();
  }

  /** vCPUs that were created meanwhile, or a VMM that has closed its VM (as execve does). */
  #announceNew(): void {
    if (this.vmm.file.ownersDescriptor() === undefined) {
      this.#vmmGone();
      return;
    }
    for (const vcpu of this.#discover()) void this.#handler?.vcpuCreated?.(vcpu);
  }

  #vmmGone(): void {
    const handler = this.#handler;
    this.#forget();
    handler?.closed();
  }

  /** Stops waiting for anything; threads are no longer touched. */
  #forget(): void {
    clearInterval(this.#discovery);
    this.#exit?.stop();
    this.#stopPolling?.();
    this.#exit = undefined;
    this.#stopPolling = undefined;
    if (this.#pidfd >= 0) libc().close(this.#pidfd);
    this.#pidfd = -1;
    for (const state of this.#states) {
      clearTimeout(state.searching);
      state.searching = undefined;
      state.joining = undefined;
      state.vcpu.thread?.page.close();
      state.vcpu.thread = undefined;
      state.vcpu.left();
    }
    this.#pages.close();
    this.#handler = undefined;
    this.#detaching = false;
    void this.#guard?.then((guard) => guard.stop());
    this.#guard = undefined;
  }

  /** Handles what traced threads have to tell. */
  #poll(): void {
    for (const state of this.#states) {
      if (state.joining) this.#join(state, state.joining);
      this.#pollThread(state.vcpu.thread);
    }
    this.#linger.wait(() => this.#states.some(({ vcpu }) => this.#pollThread(vcpu.thread)));
  }

  #pollThread(thread: VcpuThread | undefined): boolean {
    const event = thread?.tracee.poll();
    if (event) this.guarded(() => thread!.stopped(event));
    return event !== undefined;
  }

  guarded(run: () => void): void {
    try {
      run();
    } catch (error) {
      this.#fail(error);
    }
  }

  #fail(error: unknown): void {
    const handler = this.#handler;
    this.detach();
    handler?.closed(error instanceof Error ? error : new Error(String(error)));
  }

  /** Looks for the thread of a vCPU until it is found, or until nobody needs it any more. */
  search(vcpu: KvmVcpu): void {
    const state = this.#states[vcpu.index]!;
    if (state.joining || state.searching || !this.#handler) return;
    const tid = this.vmm.threadOf(vcpu.fd);
    if (tid !== undefined) {
      this.guarded(() => {
        state.joining = this.vmm.trace(tid);
      });
      return;
    }
    state.searching = setTimeout(() => {
      state.searching = undefined;
      if (vcpu.wanted || vcpu.armed) this.search(vcpu);
    }, SEARCH_INTERVAL_MS);
  }

  /** The first stop of a thread: from now on it is a vCPU's. */
  #join(state: VcpuState, tracee: Tracee): void {
    const event = tracee.poll();
    if (!event) return;
    if (event.kind === 'gone') {
      state.joining = undefined;
      this.search(state.vcpu);
      return;
    }
    if (event.kind !== 'interrupt' && event.kind !== 'group-stop') {
      tracee.cont(event.kind === 'signal' ? event.signal : 0);
      return;
    }
    state.joining = undefined;
    this.guarded(() => {
      const { vcpu } = state;
      const { pid } = this.vmm;
      const confined = this.#checkConfinement(tracee);
      const slot = this.vmm.agentVia(tracee).slot(vcpu.index);
      const page = new RunPage(pid, vcpu.fd);
      putU64(slot.bytes, SLOT.runPage, BigInt(this.vmm.mapRunPage(tracee, vcpu.fd)));
      const thread = new VcpuThread(vcpu, { tracee, slot, page, pid, fd: vcpu.fd, confined });
      vcpu.adopt(thread);
      this.#applyDebug(state);
      thread.stopped(event);
    });
  }

  #checkConfinement(tracee: Tracee): boolean {
    const confined = isConfined(tracee, !this.vmm.liftFilters);
    if (confined && !this.vmm.liftFilters) {
      throw new KvmiError('E_UNSUPPORTED', `a seccomp filter forbids ${this.name} what introspection takes`, {
        hint: 'Start the VMM without kvmi run, which needs a filter of its own, and hook it with kvmi attach.',
      });
    }
    this.#confined ||= confined;
    return confined;
  }

  exitPending(vcpu: KvmVcpu): boolean {
    const pending = this.vmm.exitPending(vcpu.fd);
    if (pending !== undefined) return pending;
    // The reason stays what it was when KVM_RUN only completes an exit: it may be over, but may as well not.
    const reason = vcpu.thread?.page.exitReason;
    return reason === KVM_EXIT.IO || reason === KVM_EXIT.MMIO;
  }

  gone(vcpu: KvmVcpu): void {
    this.#states[vcpu.index]!.vcpu.thread = undefined;
  }

  held(vcpu: KvmVcpu, reason: HoldReason): void {
    if (this.#detaching) {
      if (reason === 'exit') this.#completeMsrWrite(vcpu);
      return;
    }
    const done = attempt<void>(
      () => this.#serve(vcpu, reason),
      (error) => this.#fail(error),
    );
    void done;
  }

  #serve(vcpu: KvmVcpu, reason: HoldReason): Awaitable<void> {
    vcpu.learn();
    vcpu.runTasks();
    if (reason === 'exit' && this.#isDebugRegisterHit(vcpu)) return this.#hit(vcpu);
    const stop = reason === 'exit' ? this.#stopOf(vcpu) : this.#pages.stopOf(vcpu);
    if (!stop) return this.#finish(vcpu);
    return then(this.#report(vcpu, stop), (answer) => {
      if (answer.action === 'crash') return this.#crash(vcpu);
      this.#effect(vcpu, stop, answer);
      return this.#finish(vcpu);
    });
  }

  #report(vcpu: KvmVcpu, stop: Stop): Awaitable<Answer> {
    return this.#handler ? this.#handler.stop(vcpu, stop) : CONTINUE;
  }

  /** Answers requests, reports an injection, and lets the vCPU go on. */
  #finish(vcpu: KvmVcpu): Awaitable<void> {
    vcpu.runTasks();
    if (vcpu.requested && this.#handler) {
      vcpu.requested = false;
      return then(this.#handler.request(vcpu), (end) =>
        end === 'crash' ? this.#crash(vcpu) : this.#finish(vcpu),
      );
    }
    const { trap } = vcpu;
    if (trap) {
      vcpu.trap = undefined;
      return then(this.#report(vcpu, trap), () => this.#finish(vcpu));
    }
    vcpu.requested = false;
    vcpu.thread?.release();
    if (vcpu.thread?.phase === 'agent') this.#linger.expect();
  }

  #crash(vcpu: KvmVcpu): void {
    vcpu.requested = false;
    vcpu.thread?.crash();
  }

  /** What the exit that the agent has reported means; undefined when nobody is to be told. */
  #stopOf(vcpu: KvmVcpu): Stop | undefined {
    const { page } = vcpu.thread!;
    const state = this.#states[vcpu.index]!;
    if (page.exitReason === KVM_EXIT.X86_WRMSR) return this.#msrStop(vcpu, state);
    const { exception, pc } = kvmDebugExit.read(page.exit, 0);
    if (exception === BREAKPOINT_VECTOR) return this.#breakpointStop(vcpu, pc);
    this.#steppedOver(vcpu, state);
    return state.debug.singlestep ? { kind: 'singlestep', failed: false } : undefined;
  }

  #isDebugRegisterHit({ thread }: KvmVcpu): boolean {
    if (thread!.page.exitReason !== KVM_EXIT.DEBUG) return false;
    const { exception, dr6 } = kvmDebugExit.read(thread!.page.exit, 0);
    return exception !== BREAKPOINT_VECTOR && (dr6 & DR6.SINGLESTEP) === 0n;
  }

  /** In front of an instruction that a debug register names: after the handler the vCPU is stepped over it. */
  #hit(vcpu: KvmVcpu): Awaitable<void> {
    const state = this.#states[vcpu.index]!;
    const handler = this.hardwareBreakpoints.handlerAt(vcpu.instructionPointer());
    return then(handler?.(vcpu), () => {
      if (state.debug.hardware.includes(vcpu.instructionPointer())) this.#stepOver(state);
      return this.#finish(vcpu);
    });
  }

  /** One instruction beyond something that had to be disarmed for it. */
  #stepOver(state: VcpuState): void {
    if (state.debug.stepOver) return;
    state.debug.stepOver = true;
    state.vcpu.armedTraps++;
    this.#applyDebug(state);
  }

  #steppedOver(vcpu: KvmVcpu, state: VcpuState): void {
    if (!state.debug.stepOver) return;
    state.debug.stepOver = false;
    vcpu.armedTraps--;
    this.#pages.stepped(vcpu);
    this.#applyDebug(state);
  }

  #breakpointStop(vcpu: KvmVcpu, pc: bigint): Stop {
    const state = new Uint8Array(STATE_SIZE);
    vcpu.readState(state);
    const gpa = translate(this.memory, state, pc) as number | undefined;
    return { kind: 'breakpoint', gpa: gpa ?? NO_GPA, length: INT3_LENGTH };
  }

  /** Carries out a write that nobody is to be told of. */
  #completeMsrWrite(vcpu: KvmVcpu): void {
    const { page } = vcpu.thread!;
    if (page.exitReason !== KVM_EXIT.X86_WRMSR) return;
    const { index, data } = kvmMsrExit.read(page.exit, 0);
    this.#writeMsr(vcpu, index, data);
  }

  #msrStop(vcpu: KvmVcpu, state: VcpuState): Stop | undefined {
    const { index, data } = kvmMsrExit.read(vcpu.thread!.page.exit, 0);
    if (state.msrs.has(index)) {
      return { kind: 'msr', msr: index, old: vcpu.readMsr(index) ?? 0n, new: data };
    }
    this.#completeMsrWrite(vcpu);
    return undefined;
  }

  /** Completes a write to an MSR that has left the guest; the guest gets #GP when it is not possible. */
  #writeMsr(vcpu: KvmVcpu, index: number, value: bigint | undefined): void {
    const accepted = value !== undefined && vcpu.writeMsr(index, value);
    vcpu.thread!.page.exit[0] = accepted ? 0 : 1;
  }

  /** What a stop was about happens, or not. */
  #effect(vcpu: KvmVcpu, stop: Stop, { action, value }: Answer): void {
    const state = this.#states[vcpu.index]!;
    switch (stop.kind) {
      case 'msr':
        this.#writeMsr(vcpu, stop.msr, action === 'refuse' ? undefined : (value ?? stop.new));
        break;
      case 'breakpoint':
        if (action === 'continue') vcpu.deliver(BREAKPOINT_VECTOR);
        break;
      case 'page':
        if (this.#pages.answered(vcpu, action === 'continue' ? 'go on' : 'again')) this.#stepOver(state);
        break;
    }
  }

  #applyDebug({ vcpu }: VcpuState): void {
    if (vcpu.thread) vcpu.thread.changed = true;
  }

  prepareEntry({ index, thread }: KvmVcpu): void {
    const { slot } = thread!;
    putDebugRequest(slot.bytes, this.#states[index]!.debug, this.#msrs.active);
    this.#msrs.put(slot, this.#vmFd, this.#states.length === 1);
  }

  arm(trap: Trap): Awaitable<void> {
    return then(this.#knowConfinement(), () => {
      switch (trap.kind) {
        case 'singlestep':
          requireCapability(this.capabilities, 'singlestep');
          return this.#setDebug(trap.vcpu, 'singlestep', true);
        case 'breakpoint':
          requireCapability(this.capabilities, 'breakpoint');
          return this.#setDebug(trap.vcpu, 'software', true);
        case 'msr':
          requireCapability(this.capabilities, 'msr');
          return this.#armMsr(this.#stateOf(trap.vcpu), trap.msr);
        case 'page':
          if (!(trap.access & ACCESS.write)) requireCapability(this.capabilities, 'page-write');
          return this.#pages.arm(trap);
        default:
          requireCapability(this.capabilities, trap.kind === 'cpuid' ? 'cpuid-event' : trap.kind);
      }
    });
  }

  /** Filters can only be read from a stopped thread: a VMM that has some is looked at before the first trap. */
  #knowConfinement(): Awaitable<void> {
    const { vcpu } = this.#states[0] ?? {};
    if (!vcpu || vcpu.thread || this.#unsafe || !this.vmm.filtered) return;
    return vcpu.whenHeld(() => undefined);
  }

  disarm(trap: Trap): Awaitable<void> {
    switch (trap.kind) {
      case 'singlestep':
        return this.#setDebug(trap.vcpu, 'singlestep', false);
      case 'breakpoint':
        return this.#setDebug(trap.vcpu, 'software', false);
      case 'msr':
        return this.#disarmMsr(this.#stateOf(trap.vcpu), trap.msr);
      case 'page':
        return this.#pages.disarm(trap);
    }
  }

  #stateOf(vcpu: { readonly index: number }): VcpuState {
    return this.#states[vcpu.index]!;
  }

  #setDebug(vcpu: { readonly index: number }, what: 'singlestep' | 'software', on: boolean): void {
    const state = this.#stateOf(vcpu);
    if (state.debug[what] === on) return;
    state.debug[what] = on;
    this.#changeArmed(state, on ? 1 : -1);
  }

  /** Every vCPU stops at these linear addresses, which are one more or one less than before. */
  #applyBreakpoints(addresses: readonly bigint[]): void {
    for (const state of this.#states) {
      const was = state.debug.hardware.length > 0;
      state.debug.hardware = addresses;
      this.#changeArmed(state, Number(addresses.length > 0) - Number(was));
    }
  }

  #changeArmed(state: VcpuState, by: number): void {
    state.vcpu.armedTraps += by;
    this.#applyDebug(state);
    state.vcpu.kick();
  }

  #armMsr(state: VcpuState, msr: number): Awaitable<void> {
    if (state.msrs.has(msr)) return;
    const fresh = this.#msrs.add(msr);
    state.msrs.add(msr);
    if (!fresh) return;
    this.#guard ??= Guard.start(this.vmm.pid, this.#vmFd);
    return this.#guard.then(
      () => this.#setFilter(state),
      (error) => {
        this.#guard = undefined;
        this.#msrs.remove(msr);
        state.msrs.delete(msr);
        throw error;
      },
    );
  }

  #disarmMsr(state: VcpuState, msr: number): Awaitable<void> {
    if (!state.msrs.delete(msr) || !this.#msrs.remove(msr)) return;
    return this.#unsetFilter(state);
  }

  /** The filter is the VM's: every other vCPU has to be interposed on before it is set. */
  #setFilter(state: VcpuState): Awaitable<void> {
    const others = this.#states.filter((other) => other !== state);
    for (const other of others) this.#changeArmed(other, 1);
    const traced = others.filter(({ vcpu }) => vcpu.thread);
    const set = () =>
      state.vcpu.whenHeld(() => {
        this.#changeArmed(state, 1);
        this.#msrs.apply(state.vcpu.thread!, this.#vmFd);
      });
    if (traced.length === 0) return set();
    return Promise.all(traced.map(({ vcpu }) => vcpu.whenHeld(() => undefined))).then(set);
  }

  #unsetFilter(state: VcpuState): Awaitable<void> {
    return state.vcpu.whenHeld(() => {
      this.#msrs.apply(state.vcpu.thread!, this.#vmFd);
      for (const each of this.#states) this.#changeArmed(each, -1);
    });
  }

  /** Finds out in advance what `attach` and the first stop need. */
  prepare(): void {
    void this.vmm.site;
    for (const { vcpu } of this.#states) this.vmm.threadOf(vcpu.fd);
  }

  /** Removes an MSR filter that a process which was killed has left on the VM. */
  async clearMsrFilter(): Promise<void> {
    this.attach({ stop: () => CONTINUE, request: () => undefined, closed: () => undefined });
    const { vcpu } = this.#states[0]!;
    await vcpu.whenHeld(() => this.#msrs.apply(vcpu.thread!, this.#vmFd));
    this.detach();
  }

  kill(): void {
    libc().kill(this.vmm.pid, SIGNAL.SIGTERM);
  }

  detach(): void {
    if (!this.#handler) return;
    this.#detaching = true;
    const threads = this.#states.flatMap(({ vcpu }) => vcpu.thread ?? []);
    for (const state of this.#states) {
      Object.assign(state.debug, { singlestep: false, software: false, hardware: [], stepOver: false });
      state.msrs.clear();
      state.vcpu.armedTraps = 0;
      state.vcpu.requested = false;
    }
    this.hardwareBreakpoints.clear();
    this.#pages.close();
    try {
      if (this.#msrs.active) this.#clearMsrs(threads);
      for (const thread of threads) this.#letGo(thread, thread === threads.at(-1));
      for (const { joining } of this.#states) joining?.release();
    } catch {
      // The VMM is going: what is left of it needs nothing restored.
    }
    this.#forget();
  }

  #clearMsrs(threads: readonly VcpuThread[]): void {
    this.#msrs.clear();
    const thread = threads[0];
    if (thread?.holdNow()) this.#msrs.apply(thread, this.#vmFd);
    for (const state of this.#states) this.#applyDebug(state);
  }

  /** Detaches from a thread; the last one takes the agent out. */
  #letGo(thread: VcpuThread, last: boolean): void {
    if (!thread.bringHome()) return;
    this.vmm.unmapRunPage(thread.tracee, Number(getU64(thread.slot.bytes, SLOT.runPage)));
    if (last) this.vmm.removeAgent(thread.tracee);
    thread.letGo();
  }

  async close(): Promise<void> {
    this.detach();
    this.vmm.close();
  }
}

const UNSAFE_MSR =
  'with several vCPUs a trapped MSR can harm the VMM for some milliseconds when this process is killed; allow it with the option unsafe';
const CONFINED =
  'a seccomp filter of the VMM forbids what has to be done in it when this process is killed: the VMM would be killed, too; allow it with the option unsafe';
const UNSAFE_WHEN_CONFINED = {
  singlestep: CONFINED,
  breakpoint: CONFINED,
  msr: CONFINED,
  'page-write': CONFINED,
};
const INT3_LENGTH = 1;
/** All-ones on the wire. */
const NO_GPA = 2 ** 64;

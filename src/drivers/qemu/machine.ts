import { setTimeout as sleep } from 'node:timers/promises';
import { type Awaitable, then } from '../../awaitable.ts';
import { KvmiError } from '../../error.ts';
import { attachedAlready } from '../../machine/busy.ts';
import { type Capabilities, requireCapability, requireTrap } from '../../machine/capabilities.ts';
import type { Machine, MachineHandler } from '../../machine/machine.ts';
import type { RegionMemory } from '../../machine/region-memory.ts';
import type { Answer, Stop, Trap } from '../../machine/stops.ts';
import { startTimeOf } from '../../system/proc.ts';
import { qemuCapabilities } from './capabilities.ts';
import type { CpuState } from './cpu-state.ts';
import { type QemuFacts, readFacts, readVcpus, type VcpuFacts } from './facts.ts';
import type { GdbClient } from './gdb.ts';
import { Guard } from './guard/guard.ts';
import { type LeftBehind, repairLeftBehind } from './guard/left-behind.ts';
import { Repair } from './guard/repair.ts';
import { identityOfVm, type VmIdentity } from './guard/vm-identity.ts';
import { GuestRam } from './guest-ram.ts';
import { copySpoilt, ended, migrated, snapshotSpoilt, stays } from './machine-errors.ts';
import { MemoryCopies } from './memory-copies.ts';
import { oneByOne } from './one-by-one.ts';
import type { QmpAddress } from './open-qmp.ts';
import { isPatch, Patches } from './patches.ts';
import { QemuProbes } from './probes.ts';
import { type QmpEvent, type QmpTransport, recordOf } from './qmp.ts';
import type { RamSource } from './ram.ts';
import { RunControl, type RunControlOwner } from './run-control.ts';
import { StateReader } from './state-reader.ts';
import { StoppedMemory } from './stopped-memory.ts';
import type { StoppedVcpu } from './stopped-vcpu.ts';
import { findFreeStub, type StubPlan, statusOf } from './stub.ts';
import { QemuTraps } from './traps.ts';
import { QemuVcpu } from './vcpu.ts';
import { Workspace } from './workspace.ts';

/** How long this process tries to undo what it did after the gdbstub was lost. Then the guard goes on. */
const RECOVERY_MS = 5000;
const RECOVERY_PAUSE_MS = 100;
/** Any unmodified QEMU, attached through its monitor alone. */
export class QemuMachine implements Machine {
  readonly name: string;
  readonly uuid: Uint8Array;
  readonly startTime: number;
  readonly vcpus: QemuVcpu[] = [];
  /** With KVM a breakpoint of the gdbstub takes a debug register, and cannot be stepped over while it is set. */
  readonly probes: QemuProbes | undefined;
  readonly #facts: QemuFacts;
  readonly #qmp: QmpTransport;
  readonly #monitor: QmpAddress;
  readonly #guard = new Guard();
  readonly #patches = new Patches((patches) => this.#guard.journal?.update({ patches }));
  readonly #copies: MemoryCopies;
  readonly #workspace: Workspace;
  readonly #ram: GuestRam;
  readonly #control: RunControl;
  readonly #states: StateReader;
  readonly #traps: QemuTraps;
  #capabilities: Capabilities;
  #handler: MachineHandler | undefined;
  #shutDown = false;
  /** Under way, or over, after the gdbstub was lost. */
  #recovery: Promise<void> | undefined;
  /** Where in guest memory something could not be taken back. */
  #left: readonly number[] = [];
  /** Whether int3 was in guest memory when the stub was given up. */
  #hadPatches = false;

  /**
   * Opens the machine behind `qmp`. The guest is not touched, but for what a kvmi that was killed has left in it, which
   * `report` is told of. The machine owns `qmp` from then on. @internal
   */
  static async open(
    qmp: QmpTransport,
    monitor: QmpAddress,
    report: (left: LeftBehind) => void,
  ): Promise<QemuMachine> {
    let workspace: Workspace | undefined;
    try {
      const facts = await readFacts(qmp);
      report(await repairLeftBehind(identityOfVm(facts.uuid, facts.pid, qmp, monitor), qmp));
      workspace = new Workspace(facts.pid);
      const machine = new QemuMachine(facts, qmp, monitor, workspace);
      await machine.#ram.look();
      return machine;
    } catch (error) {
      workspace?.remove();
      await qmp.close();
      throw error;
    }
  }

  private constructor(facts: QemuFacts, qmp: QmpTransport, monitor: QmpAddress, workspace: Workspace) {
    this.name = facts.name;
    this.uuid = Buffer.from(facts.uuid.replaceAll('-', ''), 'hex');
    this.startTime = facts.pid === undefined ? 0 : startTimeOf(facts.pid);
    this.#facts = facts;
    this.#qmp = qmp;
    this.#monitor = monitor;
    this.#workspace = workspace;
    this.#ram = new GuestRam(qmp, facts.pid, workspace, (...what) => this.#write(...what));
    this.#copies = new MemoryCopies(qmp, {
      snapshot: () => this.#snapshot(),
      migration: () => this.#migration(),
      nodes: (nodes) => this.#guard.journal?.update({ nodes }),
    });
    const present = facts.vcpus.map(({ index }) => index);
    this.#control = new RunControl(qmp, workspace, present, this.#owner());
    this.probes = facts.tcg ? new QemuProbes(this.#control, () => this.vcpus) : undefined;
    this.#states = new StateReader(
      qmp,
      workspace,
      () => this.#control.present,
      facts.tcg,
      () => this.#control.others.expectStop(),
    );
    this.#traps = new QemuTraps(this.#control, this.memory, {
      borrowed: (borrowed) => this.#guard.journal?.update({ borrowed }),
      handler: (gva) => this.#noteHandler(gva.toString(16)),
      originalAt: (gpa) => this.#patches.originalAt(gpa),
    });
    this.#capabilities = qemuCapabilities({ ...facts, noDeviceState: undefined });
    this.#addVcpus(facts.vcpus);
    qmp.onEvent((event) => this.#event(event));
  }

  get memory(): RegionMemory {
    return this.#ram.memory;
  }

  get capabilities(): Capabilities {
    return this.#capabilities;
  }

  /** How guest memory is read, one sentence a RAM block. */
  get memoryAccess(): string[] {
    return this.#ram.access;
  }

  /** Throws E_BUSY when another handler is attached, another process holds the VM, or a debugger has its gdbstub. */
  async attach(handler: MachineHandler): Promise<void> {
    if (this.#control.lost) throw this.#control.lost;
    if (this.#handler) throw attachedAlready(this.name);
    await this.#qmp.claim();
    if (!this.#control.attached) await findFreeStub(this.#qmp);
    await this.#copies.requireNone();
    this.#control.allow();
    this.#handler = handler;
  }

  /** What could not be taken back is reported by {@link close}. */
  async detach(): Promise<void> {
    await this.#control.end();
    await this.#recovery;
    this.probes?.clear();
    this.#traps.clear();
    this.#handler = undefined;
    this.#qmp.release();
  }

  async arm(trap: Trap): Promise<void> {
    requireTrap(this.#capabilities, trap);
    await this.#traps.arm(trap);
  }

  async disarm(trap: Trap): Promise<void> {
    if (this.#control.attached) await this.#traps.disarm(trap);
  }

  /** Ends QEMU as the kernel's KVMI does: with SIGTERM. */
  kill(): void {
    requireCapability(this.#capabilities, 'crash');
    const pid = this.#facts.pid!;
    if (startTimeOf(pid) !== this.startTime) {
      throw new KvmiError('E_GONE', `process ${pid} is not QEMU any more: QEMU has ended`);
    }
    process.kill(pid, 'SIGTERM');
  }

  /** Throws E_DETACH when not everything could be taken back. What can be later is the guard's business then. */
  async close(): Promise<void> {
    await this.detach();
    await this.#qmp.close();
    this.#ram.close();
    if (!this.#guard.journal) this.#workspace.remove();
    await this.#guard.end();
    if (this.#guard.journal ?? this.#left.length > 0) throw stays(this.name, this.#left);
  }

  /**
   * TCG keeps translations of guest code, which only writes through QEMU invalidate; so every write goes that way, with
   * the vCPUs stopped. Other accelerators run the code itself, and bytes are stored directly.
   */
  #write(gpa: number, from: Uint8Array, source: RamSource, offset: number): Awaitable<boolean> {
    const bytes = from.slice();
    return then(this.#qmp.claim(), () => {
      if (!this.#facts.tcg && source.write && !isPatch(bytes)) {
        return then(source.write(offset, bytes), (written) => {
          if (written) this.#patches.written(gpa, bytes);
          return written;
        });
      }
      return this.#control.exclusive(async (gdb) => {
        await this.#patches.note(this.memory, gpa, bytes);
        if (this.#patches.any) await this.#copies.block(true);
        const written = await gdb.writePhysical(gpa, bytes);
        if (written) this.#patches.written(gpa, bytes);
        if (!this.#patches.any) await this.#copies.block(false);
        return written;
      });
    });
  }

  #owner(): RunControlOwner {
    return {
      stop: (vcpu, stop) => this.#stop(vcpu, stop),
      request: (vcpu) => this.#handler?.request(this.vcpus[vcpu]!),
      readStates: (gdb) => this.#readStates(gdb),
      vcpus: async () => {
        const found = await readVcpus(this.#qmp);
        void this.#announce(this.#plug(found));
        return found.map(({ index }) => index);
      },
      deliver: (vcpu, hold, answer) => this.#traps.injection.deliver(vcpu, hold, answer),
      attaching: (stub, running) => this.#attaching(stub, running),
      leaving: (vcpus) => this.#leaving(vcpus),
      detached: async () => {
        await this.#copies.unwatch();
        this.#guard.done();
      },
      paused: (paused) => {
        this.#guard.journal?.update({ running: !paused });
        if (paused) void this.#preUnhook('suspend');
      },
      refusesSnapshots: () => this.#copies.blocked,
      lost: (error) => this.#lost(error),
    };
  }

  get #identity(): VmIdentity {
    return identityOfVm(this.#facts.uuid, this.#facts.pid, this.#qmp, this.#monitor);
  }

  async #attaching(stub: StubPlan, running: boolean): Promise<void> {
    const { tcg } = this.#facts;
    await this.#copies.requireNone();
    const migrationEvents = await this.#copies.isOff();
    await this.#guard.begin({
      vm: this.#identity,
      monitor: this.#monitor,
      tcg,
      workspace: this.#workspace.path,
      stub,
      running,
      migrationEvents,
    });
    await this.#copies.watch(migrationEvents);
  }

  #noteHandler(gva: string): void {
    const { journal } = this.#guard;
    if (journal && !journal.state.handlers.includes(gva))
      journal.update({ handlers: [...journal.state.handlers, gva] });
  }

  async #leaving(vcpus: readonly StoppedVcpu[]): Promise<void> {
    const memory = new StoppedMemory(this.memory, vcpus[0]!.gdb);
    this.#hadPatches = this.#patches.any;
    const left = await this.#patches.restore(memory, vcpus, this.#traps.breakpoints.handlers);
    this.#left = [...this.#left, ...left];
  }

  /** The gdbstub is lost, QEMU may live: what is in the VM is undone by another stub. */
  async #recover(): Promise<void> {
    const deadline = Date.now() + RECOVERY_MS;
    for (let { journal } = this.#guard; journal && Date.now() < deadline; ) {
      const attempt = new Repair(journal.path, journal.state).attempt(this.#qmp);
      const outcome = await attempt.catch(() => 'again');
      if (outcome !== 'again') return this.#guard.done();
      await sleep(RECOVERY_PAUSE_MS);
    }
    // The guest is not to stand still until somebody closes the machine.
    await this.#guard.end();
  }

  async #stop(vcpu: number, stop: Stop): Promise<Answer> {
    const answer = (await this.#handler?.stop(this.vcpus[vcpu]!, stop)) ?? { action: 'continue' };
    return answer;
  }

  async #readStates(gdb: GdbClient): Promise<ReadonlyMap<number, CpuState>> {
    const states = await this.#states.read(gdb);
    const { failure } = this.#states;
    this.#capabilities = qemuCapabilities({ ...this.#facts, noDeviceState: failure });
    for (const [i, state] of states) {
      this.vcpus[i]!.started = state.started;
      await this.#traps.breakpoints.refresh(i, state, gdb);
    }
    return states;
  }

  #event({ name, data }: QmpEvent): void {
    if (name === 'SHUTDOWN') {
      this.#shutDown = true;
      void this.#preUnhook('shutdown');
    }
    // What was patched is overwritten or meaningless once the guest boots again.
    if (name === 'RESET') {
      this.#patches.clear();
      void this.#copies.block(false).catch(() => {});
      this.#handler?.reset?.();
    }
    if (name === 'ACPI_DEVICE_OST') this.#plugged(recordOf(data.info, 'a device')['slot-type']);
    if (name === 'STOP') setImmediate(() => void this.#lookAfterStop().catch(() => {}));
    if (name === 'SUSPEND' || name === 'SUSPEND_DISK') void this.#preUnhook('suspend');
  }

  /** The guest has taken something that was plugged in, or let it go. It may say so as often as it likes. */
  #plugged(slot: unknown): void {
    if (slot === 'CPU') this.#lookAtVcpus();
    if (slot === 'DIMM') this.#lookAtMemory();
  }

  readonly #lookAtVcpus = oneByOne(async () => {
    const found = await readVcpus(this.#qmp);
    const fresh = this.#plug(found);
    await this.#control.setVcpus(found.map(({ index }) => index));
    await this.#announce(fresh);
  });

  async #announce(fresh: readonly QemuVcpu[]): Promise<void> {
    for (const vcpu of fresh) await this.#handler?.vcpuCreated?.(vcpu);
  }

  readonly #lookAtMemory = oneByOne(() => this.#ram.look());

  #plug(found: readonly VcpuFacts[]): QemuVcpu[] {
    const fresh = this.#addVcpus(found);
    for (const { index } of fresh) this.#traps.breakpoints.plugged(index);
    return fresh;
  }

  /** Those that are new. One whose number was left out does not run. */
  #addVcpus(found: readonly VcpuFacts[]): QemuVcpu[] {
    const fresh: QemuVcpu[] = [];
    for (let index = this.vcpus.length; index <= Math.max(...found.map((vcpu) => vcpu.index)); index++) {
      const tscHz = found.find((vcpu) => vcpu.index === index)?.tscHz ?? 0;
      fresh.push(new QemuVcpu(index, tscHz, this.#control, this.#traps.cpuid, () => this.#capabilities));
    }
    this.vcpus.push(...fresh);
    for (const vcpu of this.vcpus) {
      const present = found.some(({ index }) => index === vcpu.index);
      // One that comes back is looked at when its state is read.
      vcpu.started = present && (vcpu.started || !this.#control.present.includes(vcpu.index));
    }
    return fresh;
  }

  /**
   * The gdbstub says nothing of a stop for loading a snapshot. When that fails QEMU leaves the VM stopped: that is what
   * others asked for, unless it failed because of us.
   */
  async #lookAfterStop(): Promise<void> {
    if (!this.#copies.blocked || !this.#control.running || (await statusOf(this.#qmp)) !== 'restore-vm')
      return;
    await this.#control.exclusive(async () => {});
  }

  /** One that has int3 in it would harm whoever uses it. */
  #snapshot(): void {
    if (this.#patches.any) this.#end(snapshotSpoilt(this.name));
  }

  /** Everything is taken out of the VM, and it is left alone from then on. */
  async #migration(): Promise<void> {
    if (!this.#handler) return;
    void this.#preUnhook('migrate');
    const error = migrated(this.name);
    await this.#control.end(error);
    const { left } = this.#control;
    const spoilt = left === 'stopped' || (left === 'running' && this.#hadPatches);
    this.#end(spoilt ? copySpoilt(this.name) : error);
  }

  /** The handler is not told anything any more. */
  #end(error: Error | undefined): void {
    const handler = this.#handler;
    this.#handler = undefined;
    handler?.closed(error);
  }

  async #preUnhook(reason: 'suspend' | 'migrate' | 'shutdown'): Promise<void> {
    try {
      await this.#handler?.preUnhook?.(reason);
    } catch {
      // QEMU goes on whatever the handler makes of it.
    }
  }

  #lost(error: Error): void {
    this.#recovery = this.#recover();
    const handler = this.#handler;
    this.#handler = undefined;
    void this.#whyLost(error).then((why) => handler?.closed(why));
  }

  /** Undefined: the guest was shut down. */
  async #whyLost(error: Error): Promise<Error | undefined> {
    const fate = await this.#qmp.fate?.();
    if (fate || this.#shutDown) return fate;
    try {
      await statusOf(this.#qmp);
    } catch (silence) {
      if (silence instanceof KvmiError && silence.code === 'E_QMP_CLOSED') return ended(this.name);
    }
    return error;
  }
}

import { setTimeout as sleep } from 'node:timers/promises';
import { type Awaitable, then } from '../../awaitable.ts';
import { KvmiError, messageOf } from '../../error.ts';
import { attachedAlready } from '../../machine/busy.ts';
import { type Capabilities, requireCapability, requireTrap } from '../../machine/capabilities.ts';
import type { Machine, MachineHandler } from '../../machine/machine.ts';
import { type BackedRegion, RegionMemory } from '../../machine/region-memory.ts';
import type { Answer, Stop, Trap } from '../../machine/stops.ts';
import { startTimeOf } from '../../system/proc.ts';
import { BreakpointTrap } from './breakpoint-trap.ts';
import { qemuCapabilities } from './capabilities.ts';
import type { CpuState } from './cpu-state.ts';
import { CpuidReader } from './cpuid-reader.ts';
import type { GdbClient } from './gdb.ts';
import type { BorrowedVcpu } from './guard/borrowed-vcpu.ts';
import { Guard } from './guard/guard.ts';
import { type LeftBehind, repairLeftBehind } from './guard/left-behind.ts';
import { Repair } from './guard/repair.ts';
import { identityOfVm, uuidOf, type VmIdentity } from './guard/vm-identity.ts';
import { Injection } from './injection.ts';
import { InstructionTraps } from './instruction-traps.ts';
import { parseMemoryTree } from './memory-map.ts';
import type { QmpAddress } from './open-qmp.ts';
import { isPatch, Patches } from './patches.ts';
import { QemuProbes } from './probes.ts';
import { findQemuProcess } from './process.ts';
import { type QmpEvent, type QmpTransport, recordOf, recordsOf } from './qmp.ts';
import { openRam, type RamSource } from './ram.ts';
import { RunControl, type RunControlOwner } from './run-control.ts';
import { StateReader } from './state-reader.ts';
import { StoppedMemory } from './stopped-memory.ts';
import type { StoppedVcpu } from './stopped-vcpu.ts';
import { findFreeStub, type StubPlan } from './stub.ts';
import { QemuVcpu } from './vcpu.ts';
import { Workspace } from './workspace.ts';

/** How long this process tries to undo what it did after the gdbstub was lost. Then the guard goes on. */
const RECOVERY_MS = 5000;
const RECOVERY_PAUSE_MS = 100;

/** What is asked of QEMU once, when the machine is opened. */
interface QemuFacts {
  readonly name: string;
  /** As text. */
  readonly uuid: string;
  readonly tcg: boolean;
  readonly pid: number | undefined;
  /** The TSC frequency of each vCPU in Hz, 0 when QEMU does not know it. */
  readonly tscHz: readonly number[];
}

/** Any unmodified QEMU, attached through its monitor alone. */
export class QemuMachine implements Machine {
  readonly name: string;
  readonly uuid: Uint8Array;
  readonly startTime: number;
  readonly memory: RegionMemory;
  readonly vcpus: readonly QemuVcpu[];
  /** With KVM a breakpoint of the gdbstub takes a debug register, and cannot be stepped over while it is set. */
  readonly probes: QemuProbes | undefined;
  readonly #facts: QemuFacts;
  readonly #qmp: QmpTransport;
  readonly #monitor: QmpAddress;
  readonly #guard = new Guard();
  readonly #patches = new Patches((patches) => this.#guard.journal?.update({ patches }));
  readonly #workspace: Workspace;
  readonly #ram: ReadonlyMap<string, RamSource>;
  readonly #control: RunControl;
  readonly #states: StateReader;
  readonly #breakpoints: BreakpointTrap;
  readonly #injection: Injection;
  readonly #instructions: Readonly<Record<'cr' | 'msr' | 'xsetbv', InstructionTraps>>;
  #capabilities: Capabilities;
  #handler: MachineHandler | undefined;
  #shutDown = false;
  /** Under way, or over, after the gdbstub was lost. */
  #recovery: Promise<void> | undefined;
  /** Where in guest memory something could not be taken back. */
  #left: readonly number[] = [];

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
      const ranges = parseMemoryTree(await qmp.hmp('info mtree -f'));
      const ram = await openRam(ranges, qmp, facts.pid, workspace);
      return new QemuMachine(facts, qmp, monitor, workspace, ram, ranges);
    } catch (error) {
      workspace?.remove();
      await qmp.close();
      throw error;
    }
  }

  private constructor(
    facts: QemuFacts,
    qmp: QmpTransport,
    monitor: QmpAddress,
    workspace: Workspace,
    ram: ReadonlyMap<string, RamSource>,
    ranges: ReturnType<typeof parseMemoryTree>,
  ) {
    this.name = facts.name;
    this.uuid = Buffer.from(facts.uuid.replaceAll('-', ''), 'hex');
    this.startTime = facts.pid === undefined ? 0 : startTimeOf(facts.pid);
    this.#facts = facts;
    this.#qmp = qmp;
    this.#monitor = monitor;
    this.#workspace = workspace;
    this.#ram = ram;
    this.memory = new RegionMemory(
      ranges.map(({ gpa, size, readonly, block, offset }): BackedRegion => {
        const source = ram.get(block)!;
        const backend = {
          read: (at: number, into: Uint8Array) => source.read(offset + at, into),
          write: (at: number, from: Uint8Array) => this.#write(gpa + at, from, source, offset + at),
          nextData: (at: number) =>
            source.nextData ? (source.nextData(offset + at) ?? Infinity) - offset : at,
        };
        return { gpa, size, readonly, backend };
      }),
    );
    this.#control = new RunControl(qmp, workspace, facts.tscHz.length, this.#owner());
    this.probes = facts.tcg ? new QemuProbes(this.#control, () => this.vcpus) : undefined;
    this.#states = new StateReader(qmp, workspace, facts.tscHz.length, facts.tcg, () =>
      this.#control.others.expectStop(),
    );
    this.#breakpoints = new BreakpointTrap(this.#control, this.memory, (gva) =>
      this.#noteHandler(gva.toString(16)),
    );
    this.#capabilities = qemuCapabilities({ ...facts, noDeviceState: undefined });
    this.#injection = new Injection(this.#control, this.memory);
    const onBorrow = (borrowed: BorrowedVcpu | null) => this.#guard.journal?.update({ borrowed });
    this.#instructions = {
      cr: new InstructionTraps(this.#control, this.memory, 'cr', onBorrow),
      msr: new InstructionTraps(this.#control, this.memory, 'msr', onBorrow),
      xsetbv: new InstructionTraps(this.#control, this.memory, 'xsetbv', onBorrow),
    };
    const cpuid = new CpuidReader(this.#control, this.memory, onBorrow);
    this.vcpus = facts.tscHz.map(
      (hz, i) => new QemuVcpu(i, hz, this.#control, cpuid, () => this.#capabilities),
    );
    qmp.onEvent((event) => this.#event(event));
  }

  get capabilities(): Capabilities {
    return this.#capabilities;
  }

  /** How guest memory is read, one sentence a RAM block. */
  get memoryAccess(): string[] {
    return [...this.#ram].map(([block, { description }]) => `${block}: ${description}`);
  }

  /** Throws E_BUSY when another handler is attached, another process holds the VM, or a debugger has its gdbstub. */
  async attach(handler: MachineHandler): Promise<void> {
    if (this.#control.lost) throw this.#control.lost;
    if (this.#handler) throw attachedAlready(this.name);
    await this.#qmp.claim();
    if (!this.#control.attached) await findFreeStub(this.#qmp);
    this.#handler = handler;
  }

  /** What could not be taken back is reported by {@link close}. */
  async detach(): Promise<void> {
    await this.#control.end();
    await this.#recovery;
    this.probes?.clear();
    this.#breakpoints.clear();
    this.#injection.clear();
    for (const traps of Object.values(this.#instructions)) traps.clear();
    this.#handler = undefined;
    this.#qmp.release();
  }

  async arm(trap: Trap): Promise<void> {
    requireTrap(this.#capabilities, trap);
    switch (trap.kind) {
      case 'breakpoint':
        return this.#control.exclusive((gdb) => this.#breakpoints.arm(trap.vcpu.index, gdb));
      case 'singlestep':
        return this.#setStepping(trap.vcpu.index, true);
      case 'cr':
      case 'msr':
      case 'xsetbv':
        return this.#control.exclusive((gdb) => this.#instructions[trap.kind].arm(trap, gdb));
    }
  }

  async disarm(trap: Trap): Promise<void> {
    if (!this.#control.attached) return;
    if (trap.kind === 'breakpoint') {
      await this.#control.exclusive((gdb) => this.#breakpoints.disarm(trap.vcpu.index, gdb));
    } else if (trap.kind === 'singlestep') {
      await this.#setStepping(trap.vcpu.index, false);
    } else if (trap.kind === 'cr' || trap.kind === 'msr' || trap.kind === 'xsetbv') {
      await this.#control.exclusive((gdb) => this.#instructions[trap.kind].disarm(trap, gdb));
    }
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
    for (const source of this.#ram.values()) source.close();
    if (!this.#guard.journal) this.#workspace.remove();
    await this.#guard.end();
    if (this.#guard.journal ?? this.#left.length > 0) throw stays(this.name, this.#left);
  }

  #setStepping(vcpu: number, on: boolean): Promise<void> {
    return this.#control.exclusive(async () => {
      this.#control.vcpus[vcpu]!.stepping = on;
    });
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
        const written = await gdb.writePhysical(gpa, bytes);
        if (written) this.#patches.written(gpa, bytes);
        return written;
      });
    });
  }

  #owner(): RunControlOwner {
    return {
      stop: (vcpu, stop) => this.#stop(vcpu, stop),
      request: (vcpu) => this.#handler?.request(this.vcpus[vcpu]!),
      readStates: (gdb) => this.#readStates(gdb),
      deliver: (vcpu, hold, answer) => this.#injection.deliver(vcpu, hold, answer),
      attaching: (stub, running) => this.#attaching(stub, running),
      leaving: (vcpus) => this.#leaving(vcpus),
      detached: () => this.#guard.done(),
      paused: (paused) => {
        this.#guard.journal?.update({ running: !paused });
        if (paused) void this.#preUnhook('suspend');
      },
      lost: (error) => this.#lost(error),
    };
  }

  get #identity(): VmIdentity {
    return identityOfVm(this.#facts.uuid, this.#facts.pid, this.#qmp, this.#monitor);
  }

  #attaching(stub: StubPlan, running: boolean): Promise<void> {
    const { tcg, tscHz } = this.#facts;
    return this.#guard.begin({
      vm: this.#identity,
      monitor: this.#monitor,
      vcpus: tscHz.length,
      tcg,
      workspace: this.#workspace.path,
      stub,
      running,
    });
  }

  #noteHandler(gva: string): void {
    const { journal } = this.#guard;
    if (journal && !journal.state.handlers.includes(gva))
      journal.update({ handlers: [...journal.state.handlers, gva] });
  }

  async #leaving(vcpus: readonly StoppedVcpu[]): Promise<void> {
    const memory = new StoppedMemory(this.memory, vcpus[0]!.gdb);
    const left = await this.#patches.restore(memory, vcpus, this.#breakpoints.handlers);
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
  }

  async #stop(vcpu: number, stop: Stop): Promise<Answer> {
    const answer = (await this.#handler?.stop(this.vcpus[vcpu]!, stop)) ?? { action: 'continue' };
    return answer;
  }

  async #readStates(gdb: GdbClient): Promise<CpuState[]> {
    const states = await this.#states.read(gdb);
    const { failure } = this.#states;
    this.#capabilities = qemuCapabilities({ ...this.#facts, noDeviceState: failure });
    for (const [i, state] of states.entries()) {
      this.vcpus[i]!.started = state.started;
      await this.#breakpoints.refresh(i, state, gdb);
    }
    return states;
  }

  #event({ name }: QmpEvent): void {
    if (name === 'SHUTDOWN') {
      this.#shutDown = true;
      void this.#preUnhook('shutdown');
    }
    // What was patched is overwritten or meaningless once the guest boots again.
    if (name === 'RESET') this.#patches.clear();
    if (name === 'SUSPEND' || name === 'SUSPEND_DISK') void this.#preUnhook('suspend');
    if (name === 'MIGRATION') void this.#preUnhook('migrate');
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
    void then(this.#qmp.fate?.(), (fate) => {
      handler?.closed(fate ?? (this.#shutDown ? undefined : error));
    });
  }
}

function stays(name: string, left: readonly number[]): KvmiError {
  const where = left.map((gpa) => `0x${gpa.toString(16)}`).join(', ');
  const what =
    left.length > 0 ? `int3 stays in guest memory at ${where}` : 'what kvmi did could not be undone yet';
  return new KvmiError('E_DETACH', `${name}: ${what}`, {
    hint:
      left.length > 0
        ? 'Write the bytes that belong there (`kvmi write`): a guest that runs into int3 gets an exception that nobody takes.'
        : 'The guard goes on while the VM lives; `kvmi repair VM` tells whether something is left.',
    data: { left },
  });
}

async function readFacts(qmp: QmpTransport): Promise<QemuFacts> {
  const [name, uuid, kvm, cpus, pid] = await Promise.all([
    qmp.execute('query-name'),
    uuidOf(qmp),
    qmp.execute('query-kvm'),
    qmp.execute('query-cpus-fast'),
    findQemuProcess(qmp),
  ]);
  const list = recordsOf(cpus, 'the list of vCPUs');
  const foreign = list.find(({ target }) => target !== 'x86_64');
  if (list.length === 0 || foreign !== undefined) {
    throw new KvmiError('E_QEMU_TARGET', `QEMU at ${qmp.where} emulates ${foreign?.target}, not x86_64`);
  }
  const tscHz = await Promise.all(list.map((cpu) => readTscFrequency(qmp, String(cpu['qom-path']))));
  const { name: given } = recordOf(name, 'the name');
  return {
    name: typeof given === 'string' && given !== '' ? given : qmp.where,
    uuid,
    tcg: recordOf(kvm, 'the accelerator').enabled !== true,
    pid,
    tscHz,
  };
}

async function readTscFrequency(qmp: QmpTransport, path: string): Promise<number> {
  try {
    const hz = await qmp.execute('qom-get', { path, property: 'tsc-frequency' });
    return typeof hz === 'number' ? hz : 0;
  } catch (error) {
    if (error instanceof KvmiError && error.code === 'E_QMP_COMMAND') return 0;
    throw new KvmiError('E_QEMU_FACTS', `${path}: ${messageOf(error)}`, { cause: error });
  }
}

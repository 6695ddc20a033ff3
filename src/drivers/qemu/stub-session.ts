import type { Awaitable } from '../../awaitable.ts';
import { SIGXCPU, type StopReply } from '../../rsp/stop-reply.ts';
import type { GdbClient } from './gdb.ts';
import type { Others } from './others.ts';
import type { QmpTransport } from './qmp.ts';
import type { VcpuRun } from './stopped-vcpu.ts';
import {
  addStub,
  closeStub,
  connectStub,
  hasLeft,
  isRunning,
  planStub,
  type StubPlan,
  statusOf,
} from './stub.ts';
import { hasHalted } from './trap-points.ts';
import type { Workspace } from './workspace.ts';

/** A migration takes longer. */
const FRESH_MS = 100;
/** On a host that is slower than that the guest has to run all the same. */
const FRESH_TRIES = 5;

/** A VM that was migrated ran until then, or was stopped by us. */
export type Left = 'running' | 'stopped';

/** Who is told that a gdbstub is attached and given up. */
export interface StubOwner {
  /** The gdbstub is about to be attached, when what is returned is done. `running`: whether the VM runs until then. */
  attaching(plan: StubPlan, running: boolean): Promise<void>;
  /** The stub was given up, and the vCPUs run alone. */
  detached(): Awaitable<void>;
}

/** The time in which the gdbstub is attached: from when the VM is stopped for that to when it is given back to others. */
export class StubSession {
  readonly gdb: GdbClient;
  /** The last stop, until the VM runs again. */
  stopped: StopReply | undefined;
  readonly #qmp: QmpTransport;
  readonly #plan: StubPlan;
  readonly #others: Others;
  readonly #owner: StubOwner;
  #left: Left | undefined;

  /** Attaches, which stops the VM. Rejects with the errors of {@link planStub}, {@link addStub} and {@link connectStub}. */
  static async begin(
    qmp: QmpTransport,
    workspace: Workspace,
    others: Others,
    owner: StubOwner,
  ): Promise<StubSession> {
    await qmp.claim();
    const plan = await planStub(qmp, workspace);
    const running = await isRunning(qmp);
    await owner.attaching(plan, running);
    try {
      await others.begin(running);
      const gdb = await connect(qmp, workspace, plan);
      // Connecting has stopped the VM, which is reported if it ran.
      if (gdb.stops === 0) others.expectStop();
      return new StubSession(gdb, qmp, plan, others, owner);
    } catch (error) {
      await others.end();
      await owner.detached();
      throw error;
    }
  }

  private constructor(gdb: GdbClient, qmp: QmpTransport, plan: StubPlan, others: Others, owner: StubOwner) {
    this.gdb = gdb;
    this.#qmp = qmp;
    this.#plan = plan;
    this.#others = others;
    this.#owner = owner;
  }

  /** Whether the VM may run; what is known of that is fresh, for a VM that has been migrated meanwhile must not be resumed. */
  async mayRun(): Promise<boolean> {
    for (let tries = 1; ; tries++) {
      const since = performance.now();
      const may = await this.#others.mayRun(this.gdb.stops);
      if (!may || tries === FRESH_TRIES || performance.now() - since < FRESH_MS) return may;
    }
  }

  /**
   * A VM that others have stopped is to look so. QEMU calls one `debug` that the gdbstub stopped before, and what is saved
   * of it then cannot be loaded: the destination aborts. `vcpu`: one that is there.
   */
  async showPaused(vcpu: VcpuRun): Promise<void> {
    if ((await statusOf(this.#qmp)) !== 'debug') return;
    await this.#forgetStep(vcpu);
    vcpu.state = undefined;
  }

  /** Undefined: the VM has not gone on elsewhere. Once it has it is to stay as it is. */
  async hasLeft(): Promise<Left | undefined> {
    if (this.#left === undefined && (await hasLeft(this.#qmp)))
      this.#left = this.stopped?.signal === SIGXCPU ? 'running' : 'stopped';
    return this.#left;
  }

  /**
   * Lets QEMU forget the steps that it was told to do and did not report, also in a VM that others have paused: they
   * would stop it again and again once it is to go on.
   */
  async finishSteps(vcpus: readonly VcpuRun[]): Promise<void> {
    for (const vcpu of vcpus) if (vcpu.stepUnfinished) await this.#forgetStep(vcpu);
  }

  /** Gives the stub up: the VM runs on if others want that. `vcpu`: one that is there. Answers what {@link hasLeft} does. */
  async end(vcpu: VcpuRun): Promise<Left | undefined> {
    const { gdb } = this;
    const run = await this.#giveBack(vcpu);
    if (run) this.#others.expectResume();
    await gdb.detach(run);
    if (run && (await this.#others.stoppedBefore(() => gdb.stops))) await this.#qmp.execute('stop');
    await this.#others.end();
    // A stub that is left is somebody's business: the journal stays.
    if (await closeStub(this.#qmp, this.#plan)) await this.#owner.detached();
    return this.#left;
  }

  /**
   * Whether the VM is to be let run. When that is known nothing more is sent to the stub: others may have let it run, and
   * that would stop it.
   */
  async #giveBack(vcpu: VcpuRun): Promise<boolean> {
    await this.gdb.restoreModes();
    if (!(await this.mayRun())) await this.showPaused(vcpu);
    // What others did before this is answered is known then.
    const left = await this.hasLeft();
    return left === undefined && !this.#others.paused;
  }

  async #forgetStep(vcpu: VcpuRun): Promise<void> {
    const { gdb } = this;
    await gdb.forgetStep(vcpu.index, () => this.#others.expectResume());
    const { stops } = gdb;
    const look = this.#others.look();
    const rip = await gdb.readRegister(vcpu.index, 'rip');
    // The breakpoint that was set for that, and the request to stop, may have stopped the VM at once.
    if (!(await hasHalted(gdb, vcpu, rip))) this.#others.stoppedAtOnce(await look, 1, stops);
    vcpu.stepUnfinished = false;
  }
}

async function connect(qmp: QmpTransport, workspace: Workspace, plan: StubPlan): Promise<GdbClient> {
  await addStub(qmp, plan, workspace);
  try {
    return await connectStub(plan, qmp);
  } catch (error) {
    await closeStub(qmp, plan);
    throw error;
  }
}

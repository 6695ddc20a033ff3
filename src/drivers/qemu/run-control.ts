import { type Awaitable, then } from '../../awaitable.ts';
import { KvmiError, messageOf } from '../../error.ts';
import { type Answer, CONTINUE, CRASH, type Stop } from '../../machine/stops.ts';
import { SIGTRAP, type StopReply, threadId } from '../../rsp/stop-reply.ts';
import type { CpuState } from './cpu-state.ts';
import type { GdbClient } from './gdb.ts';
import type { QmpTransport } from './qmp.ts';
import { writeReleasedRegisters } from './registers.ts';
import { Signal } from './signal.ts';
import { type Encounter, type Hold, type StoppedVcpu, type TrapPoint, VcpuRun } from './stopped-vcpu.ts';
import { addStub, closeStub, connectStub, isRunning, planStub, type StubPlan } from './stub.ts';
import type { Workspace } from './workspace.ts';

/** How long every vCPU waits for the answers of those that stopped, before the others run on without them. */
const GRACE_MS = 5;

/** What the run control needs of the machine around it. `deliver`, `leaving` and `readStates` are called with every vCPU stopped. */
export interface RunControlOwner {
  stop(vcpu: number, stop: Stop): Awaitable<Answer>;
  request(vcpu: number): Awaitable<'crash' | undefined>;
  /** The state of all vCPUs. */
  readStates(gdb: GdbClient): Promise<CpuState[]>;
  /** Delivers the exception that was queued during a hold; answers what the handler is told, unless it has to wait. */
  deliver(vcpu: StoppedVcpu, hold: Hold, answer: Answer): Promise<Stop | undefined>;
  /** The gdbstub is about to be attached, when what is returned is done. `running`: whether the VM runs until then. */
  attaching(plan: StubPlan, running: boolean): Promise<void>;
  /** Last chance to put things right before the vCPUs run alone. */
  leaving(vcpus: readonly StoppedVcpu[]): Promise<void>;
  /** The stub was given up, and the vCPUs run alone. */
  detached(): void;
  /** Somebody else paused the VM (true) or let it run again. */
  paused(paused: boolean): void;
  /** The gdbstub or QEMU is gone; nothing else is called after it. */
  lost(error: Error): void;
}

interface Task {
  run(gdb: GdbClient): Promise<void>;
  fail(error: Error): void;
}

/**
 * Makes independent vCPUs of QEMU's all-stop gdbstub.
 *
 * One loop owns the stub: it stops the guest, finds out what each vCPU stopped for, calls the handler, carries out
 * the answers, does what else needs a stopped guest, and resumes the vCPUs that are not held. Every stop is a stop of
 * all vCPUs, so each stop looks at all of them: several may have reached a trap point at once and QEMU reports one.
 */
export class RunControl {
  readonly vcpus: readonly VcpuRun[];
  readonly #qmp: QmpTransport;
  readonly #workspace: Workspace;
  readonly #owner: RunControlOwner;
  readonly #points = new Map<bigint, TrapPoint[]>();
  readonly #tasks: Task[] = [];
  readonly #wake = new Signal();
  #gdb: GdbClient | undefined;
  #plan: StubPlan | undefined;
  #reply: StopReply | undefined;
  #interrupted = false;
  #pausedByOthers = false;
  /** RESUME events that are due because of our own doing. */
  #resumesDue = 0;
  #loop: Promise<void> | undefined;
  #ending = false;
  #lost: Error | undefined;

  constructor(qmp: QmpTransport, workspace: Workspace, vcpuCount: number, owner: RunControlOwner) {
    this.#qmp = qmp;
    this.#workspace = workspace;
    this.#owner = owner;
    this.vcpus = Array.from({ length: vcpuCount }, (_, index) => new VcpuRun(index));
    qmp.onEvent(({ name }) => {
      if (name === 'RESUME') this.#resumed();
    });
    qmp.onClosed((error) =>
      this.#fail(error ?? new KvmiError('E_QMP_CLOSED', 'the monitor connection was closed')),
    );
  }

  /** Why nothing works any more; undefined while it does. */
  get lost(): Error | undefined {
    return this.#lost;
  }

  /** Whether the gdbstub is attached. */
  get attached(): boolean {
    return this.#gdb !== undefined;
  }

  /** Asks for a call of the owner's `request`. Done when the vCPU is outside the guest, or nothing works any more. */
  request(vcpu: number): Awaitable<void> {
    const run = this.vcpus[vcpu]!;
    run.requested = true;
    if (run.hold || this.#lost) return;
    return this.exclusive(async () => {}).catch(() => {});
  }

  /** Runs `task` while every vCPU is stopped; they run on afterwards. */
  exclusive<T>(task: (gdb: GdbClient) => Promise<T>): Promise<T> {
    if (this.#lost) return Promise.reject(this.#lost);
    return new Promise((resolve, reject) => {
      this.#tasks.push({
        run: async (gdb) => {
          try {
            resolve(await task(gdb));
          } catch (error) {
            reject(error);
          }
        },
        fail: reject,
      });
      this.#start();
    });
  }

  /** The state of a vCPU that is held, or, inside a task, of any. */
  async state(vcpu: number): Promise<CpuState> {
    const run = this.vcpus[vcpu]!;
    return run.hold?.state ?? this.exclusive((gdb) => this.#state(run, gdb));
  }

  /** Sets a trap point, with every vCPU stopped. Points do not touch guest memory. */
  async addPoint(gdb: GdbClient, gva: bigint, point: TrapPoint): Promise<void> {
    const there = this.#points.get(gva) ?? [];
    if (there.includes(point)) return;
    this.#points.set(
      gva,
      [...there, point].sort((a, b) => a.order - b.order),
    );
    if (there.length > 0) return;
    try {
      await gdb.setBreakpoint(1, gva, 1);
    } catch (error) {
      this.#points.delete(gva);
      throw error;
    }
  }

  async removePoint(gdb: GdbClient, gva: bigint, point: TrapPoint): Promise<void> {
    const there = this.#points.get(gva);
    if (!there?.includes(point)) return;
    if (there.length > 1) {
      this.#points.set(
        gva,
        there.filter((other) => other !== point),
      );
    } else {
      this.#points.delete(gva);
      await gdb.removeBreakpoint(1, gva, 1);
    }
  }

  /** A vCPU for a task, which runs with every vCPU stopped. */
  stopped(vcpu: number, gdb: GdbClient): StoppedVcpu {
    const run = this.vcpus[vcpu]!;
    return {
      index: vcpu,
      gdb,
      state: () => this.#state(run, gdb),
      changed: () => forget(run),
    };
  }

  /**
   * Executes one instruction on a vCPU, while the others stay stopped. False when it is halted and no interrupt has
   * woken it in time.
   */
  async stepAlone(vcpu: number, gdb: GdbClient, timeoutMs?: number): Promise<boolean> {
    const run = this.vcpus[vcpu]!;
    this.#expectResume();
    const stopped = gdb.nextStop();
    const timer = timeoutMs === undefined ? undefined : setTimeout(() => gdb.interrupt(), timeoutMs);
    gdb.resume(`vCont;s:${threadId(vcpu)}`);
    const { signal } = await stopped;
    clearTimeout(timer);
    this.#reply = undefined;
    run.stepUnfinished = signal !== SIGTRAP;
    forget(run);
    return signal === SIGTRAP;
  }

  /** Releases every vCPU and gives the stub up. Answers held calls for the handler with "continue". */
  async end(): Promise<void> {
    if (!this.#gdb && !this.#loop) return;
    this.#ending = true;
    this.#start();
    await this.#loop;
    this.#ending = false;
  }

  #start(): void {
    if (this.#lost) return;
    this.#loop ??= this.#run().finally(() => {
      this.#loop = undefined;
    });
    this.#wake.raise();
  }

  async #run(): Promise<void> {
    try {
      for (;;) {
        await this.#stop();
        await this.#collect();
        await this.#serve();
        if (this.#ending) break;
        await this.#resume();
        await this.#idle();
      }
      await this.#leave();
    } catch (error) {
      this.#fail(error instanceof Error ? error : new Error(messageOf(error)));
    }
  }

  /** Returns with every vCPU stopped. */
  async #stop(): Promise<void> {
    const gdb = this.#gdb;
    if (gdb === undefined) {
      await this.#attach();
    } else if (gdb.running) {
      this.#interrupted = true;
      const stopped = gdb.nextStop();
      gdb.interrupt();
      await stopped;
    }
  }

  async #attach(): Promise<void> {
    await this.#qmp.claim();
    this.#plan = await planStub(this.#qmp, this.#workspace);
    const running = await isRunning(this.#qmp);
    this.#pausedByOthers = !running;
    await this.#owner.attaching(this.#plan, running);
    const gdb = await this.#open(this.#plan).catch((error: unknown) => {
      this.#owner.detached();
      throw error;
    });
    this.#gdb = gdb;
    gdb.listen(
      (reply) => {
        this.#reply = reply;
        this.#wake.raise();
      },
      (error) => {
        if (this.#gdb === gdb) this.#fail(error);
      },
    );
  }

  async #open(plan: StubPlan): Promise<GdbClient> {
    await addStub(this.#qmp, plan, this.#workspace);
    try {
      return await connectStub(plan, this.#qmp);
    } catch (error) {
      await closeStub(this.#qmp, plan);
      throw error;
    }
  }

  /** Finds out what every vCPU that ran has stopped for. */
  async #collect(): Promise<void> {
    const reply = this.#reply;
    const gdb = this.#gdb!;
    this.#reply = undefined;
    if (reply === undefined) return;
    const interrupted = this.#interrupted;
    this.#interrupted = false;
    if (reply.signal !== SIGTRAP && !interrupted && !this.#pausedByOthers) {
      this.#pausedByOthers = true;
      this.#owner.paused(true);
    }
    const ran = this.vcpus.filter((vcpu) => !vcpu.hold && !vcpu.crashed);
    const rips = await Promise.all(ran.map(({ index }) => gdb.readRegister(index, 'rip')));
    for (const [i, vcpu] of ran.entries()) {
      const reported = reply.signal === SIGTRAP && reply.vcpu === vcpu.index;
      await this.#examine(vcpu, rips[i]!, reported);
    }
  }

  async #examine(vcpu: VcpuRun, rip: bigint, reported: boolean): Promise<void> {
    const moved = vcpu.rip !== rip;
    const stepped = vcpu.stepUnfinished && (moved || reported);
    vcpu.rip = rip;
    vcpu.state = undefined;
    if (reported) vcpu.stepUnfinished = false;
    // A step may end before its instruction (a start-up IPI); none of those at trap points leads back to itself.
    if (moved) vcpu.stepOver = false;
    const points = vcpu.stepOver ? [] : (this.#points.get(rip) ?? []);
    vcpu.ahead = points;
    const encounter = await this.#meet(vcpu);
    if (points.length > 0 && encounter === undefined) vcpu.stepOver = vcpu.rip === rip;
    // An int3 that was stepped onto is an exit for another reason than the step, and comes before it.
    const failed = encounter?.stop?.kind === 'breakpoint';
    const step: Stop[] = stepped && vcpu.stepping ? [{ kind: 'singlestep', failed }] : [];
    const met = encounter === undefined ? [] : [encounter];
    vcpu.queue.push(...(failed ? [...met, ...step] : [...step, ...met]));
  }

  /** What the vCPU meets next where it is. */
  async #meet(vcpu: VcpuRun): Promise<Encounter | undefined> {
    let encounter: Encounter | undefined;
    while (encounter === undefined && vcpu.ahead.length > 0) {
      const [point, ...rest] = vcpu.ahead;
      vcpu.ahead = rest;
      encounter = await this.#ask(point!, vcpu);
    }
    return encounter;
  }

  /** What a point cannot make sense of (memory that is not there any more) concerns nobody. */
  async #ask(point: TrapPoint, vcpu: VcpuRun): Promise<Encounter | undefined> {
    try {
      return await point.examine(this.stopped(vcpu.index, this.#gdb!));
    } catch (error) {
      if (this.#lost) throw error;
      return undefined;
    }
  }

  /** Calls the handler for what was found, and waits until the vCPUs that can run should run. */
  async #serve(): Promise<void> {
    const deadline = Date.now() + GRACE_MS;
    for (;;) {
      await this.#stop();
      await this.#runTasks();
      for (const vcpu of this.vcpus) await this.#advance(vcpu);
      if (this.#ending || this.#lost) return;
      if (this.#tasks.length > 0) continue;
      if (!this.vcpus.some(({ hold }) => hold)) return;
      if (this.vcpus.some(({ hold }) => hold?.answer)) continue;
      const someCanRun = !this.#pausedByOthers && this.vcpus.some((vcpu) => !vcpu.hold && !vcpu.crashed);
      const patience = someCanRun ? deadline - Date.now() : undefined;
      if (patience !== undefined && patience <= 0) return;
      await this.#wake.wait(patience);
    }
  }

  async #runTasks(): Promise<void> {
    for (let task = this.#tasks.shift(); task; task = this.#tasks.shift()) await task.run(this.#gdb!);
  }

  /** Ends a call of the handler that is over, and begins the next one that is due. */
  async #advance(vcpu: VcpuRun): Promise<void> {
    if (vcpu.hold?.answer) await this.#release(vcpu, vcpu.hold, vcpu.hold.answer);
    if (vcpu.hold || vcpu.crashed || this.#ending) return;
    const next = vcpu.queue.shift();
    if (next !== undefined) {
      const encounter = 'settle' in next ? next : undefined;
      this.#hold(
        vcpu,
        encounter,
        () => encounter?.visit?.() ?? this.#owner.stop(vcpu.index, encounter?.stop ?? (next as Stop)),
      );
    } else if (vcpu.requested) {
      vcpu.requested = false;
      this.#hold(vcpu, undefined, () =>
        then(this.#owner.request(vcpu.index), (crash) => (crash === undefined ? CONTINUE : CRASH)),
      );
    }
  }

  #hold(vcpu: VcpuRun, encounter: Encounter | undefined, call: () => Awaitable<Answer>): void {
    const hold: Hold = {
      encounter,
      state: vcpu.state,
      registers: undefined,
      exception: undefined,
      answer: undefined,
    };
    vcpu.hold = hold;
    const over = (answer: Answer) => {
      hold.answer ??= answer;
      this.#wake.raise();
    };
    // A handler that fails has no wish: the guest goes on as without it.
    (async () => call())().then(over, () => over(CONTINUE));
  }

  async #release(vcpu: VcpuRun, hold: Hold, answer: Answer): Promise<void> {
    const stopped = this.stopped(vcpu.index, this.#gdb!);
    try {
      if (hold.encounter) {
        vcpu.stepOver = (await hold.encounter.settle(stopped, answer, hold.registers)) === 'step-over';
      } else if (hold.registers) {
        await writeReleasedRegisters(stopped, hold.registers);
      }
    } catch (error) {
      // What the guest's own memory or tables do not allow is left undone, and the vCPU goes on.
      if (this.#lost) throw error;
    }
    forget(vcpu);
    vcpu.crashed = answer.action === 'crash';
    if (hold.exception && !vcpu.crashed) {
      const trap = await this.#owner.deliver(stopped, hold, answer);
      if (trap) vcpu.queue.unshift(trap);
      forget(vcpu);
      vcpu.ahead = [];
    }
    vcpu.hold = undefined;
    if (hold.encounter) await this.#meetRest(vcpu);
  }

  /** The instruction is to be executed: those that are to be asked after what was settled are. */
  async #meetRest(vcpu: VcpuRun): Promise<void> {
    if (!vcpu.stepOver || vcpu.crashed || this.#ending) vcpu.ahead = [];
    if (vcpu.ahead.length === 0) return;
    const rip = await this.#gdb!.readRegister(vcpu.index, 'rip');
    vcpu.rip = rip;
    const encounter = await this.#meet(vcpu);
    if (encounter) vcpu.queue.unshift(encounter);
    // One that was asked may have carried the instruction out.
    vcpu.stepOver = encounter === undefined && vcpu.rip === rip;
  }

  async #resume(): Promise<void> {
    const gdb = this.#gdb!;
    const running = this.vcpus.filter((vcpu) => !vcpu.hold && !vcpu.crashed);
    if (this.#pausedByOthers || running.length === 0 || gdb.running) return;
    const steps = running.filter((vcpu) => vcpu.stepOver || vcpu.stepping);
    for (const vcpu of steps) {
      vcpu.rip ??= await gdb.readRegister(vcpu.index, 'rip');
      vcpu.stepUnfinished = true;
    }
    const all = steps.length === 0 && running.length === this.vcpus.length;
    const actions = running.map((vcpu) => `;${steps.includes(vcpu) ? 's' : 'c'}:${threadId(vcpu.index)}`);
    for (const vcpu of running) vcpu.state = undefined;
    this.#expectResume();
    gdb.resume(all ? 'c' : `vCont${actions.join('')}`);
  }

  /** Waits until there is something to do with the guest stopped. */
  async #idle(): Promise<void> {
    while (!this.#hasWork()) await this.#wake.wait();
    if (this.#lost) throw this.#lost;
  }

  #hasWork(): boolean {
    return (
      this.#lost !== undefined ||
      this.#ending ||
      this.#reply !== undefined ||
      this.#tasks.length > 0 ||
      this.vcpus.some((vcpu) => (vcpu.hold ? vcpu.hold.answer : vcpu.requested && !vcpu.crashed))
    );
  }

  /** The state of all vCPUs is read at once, and kept until they run. */
  async #state(vcpu: VcpuRun, gdb: GdbClient): Promise<CpuState> {
    if (vcpu.hold?.state) return vcpu.hold.state;
    if (vcpu.state === undefined) {
      const states = await this.#owner.readStates(gdb);
      for (const other of this.vcpus) {
        other.state = states[other.index];
        if (other.hold) other.hold.state ??= states[other.index];
      }
    }
    return vcpu.state!;
  }

  /** Counts a RESUME event that will come because of us. */
  #expectResume(): void {
    this.#resumesDue++;
  }

  /** QEMU runs. When that is somebody else's doing, vCPUs that are held run too, and are stopped again. */
  #resumed(): void {
    if (this.#resumesDue > 0) {
      this.#resumesDue--;
      return;
    }
    if (!this.#gdb || this.#gdb.running) return;
    this.#gdb.assumeRunning();
    if (this.#pausedByOthers) {
      this.#pausedByOthers = false;
      this.#owner.paused(false);
    }
    // A task makes the loop stop the guest again, and find out where its vCPUs are.
    if (this.vcpus.some(({ hold }) => hold)) this.exclusive(async () => {}).catch(() => {});
  }

  async #leave(): Promise<void> {
    const gdb = this.#gdb;
    if (gdb === undefined) return;
    for (const vcpu of this.vcpus) {
      if (vcpu.hold) await this.#release(vcpu, vcpu.hold, vcpu.hold.answer ?? CONTINUE);
    }
    const stopped = this.vcpus.map(({ index }) => this.stopped(index, gdb));
    // Whatever fails, the vCPUs are let go.
    await this.#owner.leaving(stopped).catch(() => {});
    await this.#finishSteps(gdb);
    for (const [gva, points] of this.#points) {
      for (const point of points) await this.removePoint(gdb, gva, point);
    }
    for (const vcpu of this.vcpus) {
      vcpu.requested = vcpu.stepping = vcpu.stepOver = vcpu.crashed = false;
      vcpu.rip = vcpu.state = undefined;
      vcpu.ahead = [];
      vcpu.queue.length = 0;
    }
    this.#gdb = undefined;
    if (!this.#pausedByOthers) this.#expectResume();
    await gdb.detach(!this.#pausedByOthers);
    await closeStub(this.#qmp, this.#plan!);
    this.#owner.detached();
  }

  /**
   * Lets QEMU forget the steps that it was told to do and did not report, also in a VM that others have paused: they
   * would stop it again and again once it is to go on.
   */
  async #finishSteps(gdb: GdbClient): Promise<void> {
    for (const vcpu of this.vcpus) {
      if (!vcpu.stepUnfinished) continue;
      this.#expectResume();
      await gdb.forgetStep(vcpu.index);
      vcpu.stepUnfinished = false;
    }
    this.#reply = undefined;
  }

  #fail(error: Error): void {
    if (this.#lost) return;
    this.#lost = error;
    this.#gdb?.close();
    this.#gdb = undefined;
    for (const task of this.#tasks.splice(0)) task.fail(error);
    for (const vcpu of this.vcpus) vcpu.hold = undefined;
    this.#wake.raise();
    this.#owner.lost(error);
  }
}

/** The registers of a vCPU are not what was read any more. */
function forget(vcpu: VcpuRun): void {
  vcpu.rip = undefined;
  vcpu.state = undefined;
  if (vcpu.hold) vcpu.hold.state = undefined;
}

import type { Awaitable } from '../../awaitable.ts';
import { KvmiError, messageOf } from '../../error.ts';
import { type Answer, CONTINUE } from '../../machine/stops.ts';
import { SIGTRAP, threadId } from '../../rsp/stop-reply.ts';
import type { CpuState } from './cpu-state.ts';
import type { GdbClient } from './gdb.ts';
import type { Stopped } from './gdb-link.ts';
import { Holds, type HoldsOwner } from './holds.ts';
import { Others } from './others.ts';
import type { QmpTransport } from './qmp.ts';
import { isHalted } from './registers-state.ts';
import { Signal } from './signal.ts';
import { letRun, type StepAlone, stepAlone } from './step-alone.ts';
import { StepTurns, type Turn } from './step-turns.ts';
import type { Hold, StoppedVcpu, VcpuRun } from './stopped-vcpu.ts';
import { type Left, type StubOwner, StubSession } from './stub-session.ts';
import { type Place, TrapPoints } from './trap-points.ts';
import { VcpuRuns } from './vcpu-runs.ts';
import type { Workspace } from './workspace.ts';

/** How long every vCPU waits for the answers of those that stopped, before the others run on without them. */
const GRACE_MS = 5;

/** What the run control needs of the machine around it. `deliver`, `leaving` and `readStates` are called with every vCPU stopped. */
export interface RunControlOwner extends StubOwner, Pick<HoldsOwner, 'stop' | 'request' | 'deliver'> {
  /** The state of all vCPUs. */
  readStates(gdb: GdbClient): Promise<ReadonlyMap<number, CpuState>>;
  /** Which vCPUs there are: one stopped that is not known. */
  vcpus(): Promise<readonly number[]>;
  /** Last chance to put things right before the vCPUs run alone. */
  leaving(vcpus: readonly StoppedVcpu[]): Promise<void>;
  /** Somebody else paused the VM (true) or let it run again. */
  paused(paused: boolean): void;
  /** Whether snapshots can neither be made nor loaded, because of us. */
  refusesSnapshots(): boolean;
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
  readonly points: TrapPoints;
  readonly others: Others;
  readonly #qmp: QmpTransport;
  readonly #workspace: Workspace;
  readonly #owner: RunControlOwner;
  readonly #tasks: Task[] = [];
  readonly #wake = new Signal();
  readonly #runs: VcpuRuns;
  readonly #holds: Holds;
  readonly #turns = new StepTurns();
  #session: StubSession | undefined;
  #reply: Stopped | undefined;
  /** vCPUs that came after the machine was opened and are at a trap point, which is nobody's for them. */
  readonly #strangers = new Set<number>();
  /** Somebody else has let the VM run since this did. */
  #heldRan = false;
  /** Somebody else has let the VM run, and no stop has been seen since. */
  #resumedByOthers = false;
  #loop: Promise<void> | undefined;
  #ending = false;
  /** Why nothing is to be done to the VM any more. */
  #forbidden: Error | undefined;
  #left: Left | undefined;
  #lost: Error | undefined;

  constructor(qmp: QmpTransport, workspace: Workspace, vcpus: readonly number[], owner: RunControlOwner) {
    this.#qmp = qmp;
    this.#workspace = workspace;
    this.#owner = owner;
    this.#runs = new VcpuRuns(vcpus, (gdb) => owner.readStates(gdb));
    this.#holds = new Holds({
      stop: (vcpu, stop) => owner.stop(vcpu, stop),
      request: (vcpu) => owner.request(vcpu),
      deliver: (vcpu, hold, answer) => owner.deliver(vcpu, hold, answer),
      answered: () => this.#wake.raise(),
      lost: () => this.#lost !== undefined,
    });
    this.points = new TrapPoints(
      (vcpu) => this.stopped(vcpu, this.#session!.gdb),
      () => this.#lost !== undefined,
    );
    this.others = new Others(qmp, {
      resumed: () => this.#resumed(),
      changed: (paused) => owner.paused(paused),
      refuses: () => owner.refusesSnapshots(),
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
    return this.#session !== undefined;
  }

  /** Whether the VM runs, as far as the gdbstub has told. */
  get running(): boolean {
    return this.#session?.gdb.running ?? false;
  }

  get vcpus(): readonly VcpuRun[] {
    return this.#runs.all;
  }

  /** Which vCPUs there are. */
  get present(): readonly number[] {
    return this.#runs.present;
  }

  /** A vCPU for a task, which runs with every vCPU stopped. */
  stopped(vcpu: number, gdb: GdbClient): StoppedVcpu {
    return this.#runs.stopped(vcpu, gdb);
  }

  /**
   * vCPUs were plugged in or out: which there are. It is done when trap points are set on those that are new. `gdb`: where
   * every vCPU is stopped already.
   */
  async setVcpus(present: readonly number[], gdb?: GdbClient): Promise<void> {
    if (!this.#runs.set(present) || !this.attached) return;
    if (gdb) return this.points.setAgain(gdb);
    await this.exclusive((stopped) => this.points.setAgain(stopped));
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
    const refused = this.#lost ?? this.#forbidden;
    if (refused) return Promise.reject(refused);
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
    return run.hold?.state ?? this.exclusive((gdb) => this.#runs.state(run, gdb));
  }

  /** As {@link stepAlone} says, with every vCPU stopped. */
  async stepAlone(vcpu: number, gdb: GdbClient, how: StepAlone = {}): Promise<boolean> {
    const done = await stepAlone(this.vcpus[vcpu]!, gdb, this.others, how);
    this.#reply = undefined;
    return done;
  }

  /** With every vCPU stopped: lets this one, and those that are not held, run to a breakpoint, or for `timeoutMs`. */
  async runOn(vcpu: number, gdb: GdbClient, timeoutMs: number): Promise<void> {
    const running = this.vcpus.filter(({ index, mayRun }) => mayRun || index === vcpu);
    const command = `vCont${running.map(({ index }) => `;c:${threadId(index)}`).join('')}`;
    await letRun(command, gdb, this.others, { timeoutMs });
    for (const each of running) each.forget();
    this.#reply = undefined;
  }

  /**
   * That the VM had gone on elsewhere before the stub was given up, and whether it ran until then or was stopped by us.
   * Undefined: it had not.
   */
  get left(): Left | undefined {
    return this.#left;
  }

  /** Takes back what {@link end} forbade. */
  allow(): void {
    this.#forbidden = this.#left = undefined;
  }

  /**
   * Releases every vCPU and gives the stub up. Answers held calls for the handler with "continue". With `forbidden` the
   * VM is left alone afterwards, and that is the error, until {@link allow}; one that has been migrated is not resumed.
   */
  async end(forbidden?: Error): Promise<void> {
    this.#forbidden ??= forbidden;
    if (!this.#session && !this.#loop) return;
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

  /** Returns with every vCPU stopped. Once the stub was lost, undoing is the business of others, who have one of their own. */
  async #stop(): Promise<void> {
    if (this.#lost) throw this.#lost;
    const gdb = this.#session?.gdb;
    if (gdb === undefined) {
      await this.#attach();
    } else if (gdb.running || this.#resumedByOthers) {
      const stopped = gdb.running ? gdb.nextStop() : undefined;
      const bySelf = stopped && !this.#resumedByOthers && (await this.#endsBySelf(stopped));
      this.#resumedByOthers = false;
      if (!bySelf) await gdb.interrupt();
      await stopped;
    }
  }

  #endsBySelf(stopped: Promise<Stopped>): Promise<boolean> {
    return this.#turns.endsBySelf(stopped, (vcpu) => isHalted(this.#qmp, vcpu).catch(() => true));
  }

  async #attach(): Promise<void> {
    const session = await StubSession.begin(this.#qmp, this.#workspace, this.others, this.#owner);
    this.#session = session;
    session.gdb.listen(
      (reply) => {
        this.#reply = reply;
        this.#wake.raise();
      },
      (error) => {
        if (this.#session === session) this.#fail(error);
      },
    );
  }

  /** Finds out what every vCPU that ran has stopped for. */
  async #collect(): Promise<void> {
    const reply = this.#reply;
    const session = this.#session!;
    const { gdb } = session;
    this.#reply = undefined;
    if (reply === undefined) return;
    session.stopped = reply;
    this.#turns.end();
    // Those that are held, too, may have come to the breakpoint where they are.
    const allRan = this.#heldRan;
    this.#resumedByOthers = false;
    const trapped = reply.signal === SIGTRAP;
    if (trapped) this.others.ran();
    else if (!reply.asked) await this.others.stopped();
    await this.others.settle(gdb.stops);
    // Others may have let them run.
    for (const { hold } of this.vcpus) if (hold) hold.state = undefined;
    const reported = trapped ? reply.vcpu : undefined;
    const maySeveral = this.vcpus.some(
      (vcpu) => (allRan || vcpu.ran) && vcpu.index !== reported && this.points.canStop(vcpu),
    );
    // At once: what is counted from now on is others'.
    const { stops } = gdb;
    const look = maySeveral ? this.others.look() : undefined;
    const unknown = (vcpu: number) => this.vcpus[vcpu]?.absent ?? true;
    if (reported !== undefined && unknown(reported)) await this.#lookAtVcpus(gdb);
    const ran = await this.#whereAre(gdb, ({ ran, gone }) => ran || (allRan && !gone));
    if (look) {
      const silent = ran.filter(([{ index }]) => index !== reported);
      const may = await Promise.all(silent.map(([vcpu, { rip }]) => this.points.mayStop(vcpu, gdb, rip)));
      // However many they are, QEMU stops the VM once for those that come while it is being stopped.
      if (may.includes(true)) this.others.stoppedAtOnce(await look, 1, stops);
    }
    if (reported !== undefined && unknown(reported)) this.#strangers.add(reported);
    for (const [vcpu, place] of ran)
      if (vcpu.ran) await this.points.examine(vcpu, place, reported === vcpu.index);
  }

  /** Where those vCPUs are. */
  async #whereAre(
    gdb: GdbClient,
    wanted: (vcpu: VcpuRun) => boolean,
  ): Promise<(readonly [VcpuRun, Place])[]> {
    const read = () =>
      Promise.all(this.vcpus.filter(wanted).map(async (vcpu) => [vcpu, await placeOf(vcpu, gdb)] as const));
    try {
      return await read();
    } catch (error) {
      if (!(error instanceof KvmiError && error.code === 'E_GDB_REFUSED')) throw error;
      // One was unplugged meanwhile.
      await this.#lookAtVcpus(gdb);
      return read();
    }
  }

  async #lookAtVcpus(gdb: GdbClient): Promise<void> {
    await this.setVcpus(await this.#owner.vcpus(), gdb);
  }

  /** Calls the handler for what was found, and waits until the vCPUs that can run should run. */
  async #serve(): Promise<void> {
    const deadline = Date.now() + GRACE_MS;
    for (;;) {
      await this.#stop();
      await this.#collect();
      await this.#runTasks();
      for (const vcpu of this.vcpus) await this.#advance(vcpu);
      if (this.#ending || this.#lost) return;
      if (this.#tasks.length > 0) continue;
      if (!this.vcpus.some(({ hold }) => hold)) return;
      if (this.vcpus.some(({ hold }) => hold?.answer)) continue;
      if (this.#reply) continue;
      const someCanRun = !this.others.paused && this.vcpus.some(({ mayRun }) => mayRun);
      const patience = someCanRun ? deadline - Date.now() : undefined;
      if (patience !== undefined && patience <= 0) return;
      await this.#wake.wait(patience);
    }
  }

  async #runTasks(): Promise<void> {
    for (let task = this.#tasks.shift(); task; task = this.#tasks.shift()) await task.run(this.#session!.gdb);
  }

  /** Ends a call of the handler that is over, and begins the next one that is due. */
  async #advance(vcpu: VcpuRun): Promise<void> {
    if (vcpu.hold?.answer) await this.#release(vcpu, vcpu.hold, vcpu.hold.answer);
    if (!vcpu.hold && !vcpu.gone && !this.#ending) this.#holds.begin(vcpu);
  }

  async #release(vcpu: VcpuRun, hold: Hold, answer: Answer): Promise<void> {
    await this.#holds.end(vcpu, hold, answer, this.stopped(vcpu.index, this.#session!.gdb));
    if (hold.encounter && !this.#ending) await this.points.meetRest(vcpu);
  }

  async #resume(): Promise<void> {
    const session = this.#session!;
    const { gdb } = session;
    const willing = this.vcpus.filter(({ mayRun }) => mayRun);
    if (willing.length === 0 || gdb.running) return;
    for (const vcpu of willing) {
      const { rip, rcx, stepOver, stepping } = vcpu;
      const known = rip !== undefined && (rcx !== undefined || !stepping);
      if ((stepOver || stepping) && !known) Object.assign(vcpu, await placeOf(vcpu, gdb));
    }
    if (!(await session.mayRun())) {
      await session.showPaused(this.#runs.first);
      // What was done for that is no stop of the guest's, as long as others have not let it run.
      if (this.others.paused) this.#reply = undefined;
      return;
    }
    // Others have let it run meanwhile.
    if (this.#reply) return;
    const turn = this.#turns.next(willing);
    for (const vcpu of turn.steps) vcpu.stepUnfinished = true;
    for (const vcpu of willing) vcpu.sitsOut = !turn.running.includes(vcpu);
    for (const vcpu of turn.running) vcpu.state = undefined;
    session.stopped = undefined;
    this.#heldRan = false;
    this.others.expectResume();
    gdb.resume(this.#actions(turn));
    this.#resumedByOthers = false;
    const othersSitOut = turn.running.length < willing.length;
    this.#turns.begin(turn, othersSitOut ? () => this.#stopAgain(gdb) : undefined);
    void this.#lookBack(gdb);
  }

  /** `s` for those that step and `c` for the others; with nobody held, for vCPUs that are not known here, too. */
  #actions({ running, steps }: Turn): string {
    const stepping = [...steps.map(({ index }) => index), ...this.#strangers];
    this.#strangers.clear();
    const all = !this.vcpus.some(({ hold, crashed, sitsOut }) => hold ?? (crashed || sitsOut));
    if (stepping.length === 0 && all) return 'c';
    const rest = running.filter((vcpu) => !steps.includes(vcpu)).map(({ index }) => `;c:${threadId(index)}`);
    return `vCont${stepping.map((vcpu) => `;s:${threadId(vcpu)}`).join('')}${all ? ';c' : rest.join('')}`;
  }

  /** Others may have stopped the VM just before it was let run: then it is stopped again. */
  async #lookBack(gdb: GdbClient): Promise<void> {
    const stop = await this.others.stoppedBefore(() => gdb.stops).catch(() => false);
    if (stop) this.#stopAgain(gdb);
  }

  /** Stops the VM for no other reason than to look what is to be done. */
  #stopAgain(gdb: GdbClient): void {
    if (this.#session?.gdb === gdb) this.exclusive(async () => {}).catch(() => {});
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
      this.vcpus.some((vcpu) => (vcpu.hold ? vcpu.hold.answer : vcpu.requested && !vcpu.gone))
    );
  }

  /** Somebody else lets the VM run, and with it vCPUs that are held or stepped. */
  #resumed(): void {
    if (this.#session?.gdb.running !== false) return;
    this.#resumedByOthers = this.#heldRan = true;
    for (const vcpu of this.vcpus) vcpu.sitsOut = false;
    const alone = this.vcpus.some(({ hold, stepping }) => hold ?? stepping);
    if (alone) this.exclusive(async () => {}).catch(() => {});
  }

  async #leave(): Promise<void> {
    const session = this.#session;
    if (session === undefined) return;
    const { gdb } = session;
    for (const vcpu of this.vcpus) {
      if (vcpu.hold) await this.#release(vcpu, vcpu.hold, vcpu.hold.answer ?? CONTINUE);
    }
    const stopped = this.present.map((index) => this.stopped(index, gdb));
    // Whatever fails, the vCPUs are let go.
    await this.#owner.leaving(stopped).catch(() => {});
    if ((await session.hasLeft()) === undefined) await session.finishSteps(this.vcpus);
    await this.points.clear(gdb);
    for (const vcpu of this.vcpus) vcpu.reset();
    this.#session = undefined;
    this.#left = await session.end(this.#runs.first);
    this.#reply = undefined;
  }

  #fail(error: Error): void {
    if (this.#lost) return;
    this.#lost = error;
    this.#turns.end();
    this.#session?.gdb.close();
    this.#session = undefined;
    for (const task of this.#tasks.splice(0)) task.fail(error);
    for (const vcpu of this.vcpus) vcpu.hold = undefined;
    this.#wake.raise();
    this.#owner.lost(error);
  }
}

async function placeOf({ index, stepping }: VcpuRun, gdb: GdbClient): Promise<Place> {
  const [rip, rcx] = await Promise.all([
    gdb.readRegister(index, 'rip'),
    stepping ? gdb.readRegister(index, 'rcx') : undefined,
  ]);
  return { rip, rcx };
}

import { rmSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { KvmiError } from '../../../error.ts';
import type { PhysicalMemory } from '../../../machine/memory.ts';
import type { CpuState } from '../cpu-state.ts';
import type { GdbClient } from '../gdb.ts';
import { removeNodes, setMigrationEvents } from '../memory-copies.ts';
import { openQmp } from '../open-qmp.ts';
import { Patches } from '../patches.ts';
import type { QmpTransport } from '../qmp.ts';
import { StateReader } from '../state-reader.ts';
import { StopCounter } from '../stop-counter.ts';
import { addStub, chardevOf, closeStub, connectStub, hasLeft, type StubPlan, statusOf } from '../stub.ts';
import { Workspace } from '../workspace.ts';
import type { BorrowedVcpu } from './borrowed-vcpu.ts';
import { type JournalState, readJournal } from './journal.ts';
import { exists, isAt } from './vm-identity.ts';

/** How long the guest waits for the monitor, without which less is known of its vCPUs. */
const MONITOR_MS = 20_000;
/** A gdbstub that does not do in this time what is asked of it is given up for another one. */
const UNDO_MS = 10_000;
/** How long the VM is watched afterwards: a step that QEMU has not forgotten would stop it at once. */
const SETTLE_MS = 100;

/** The run states of a VM that others let run: it is stopped at a breakpoint that was left, at most. */
const RUNS = new Set(['running', 'debug']);

/** How a try ended: what was in the VM is undone, the VM has ended, or it has to be tried again. */
export type Attempt = 'repaired' | 'gone' | 'again';

/**
 * Undoes in a VM what a journal names: by the guard, by the host side that has lost its gdbstub, or by the next kvmi.
 * Before each step it is looked whether it is still that VM; another one is never touched.
 */
export class Repair {
  readonly #path: string;
  #state: JournalState;
  /** Whether the VM is to run: as the journal says, or because others have let it run since. */
  #wanted = false;
  /** By the stub alone: what is left is to remove that, and to see that the VM runs. */
  #undone = false;

  constructor(path: string, state: JournalState) {
    this.#path = path;
    this.#state = state;
  }

  /** One try. Rejects, like `again`, when it is not possible now. `own`: a monitor that this process holds already. */
  async attempt(own?: QmpTransport): Promise<Attempt> {
    const now = readJournal(this.#path);
    if (!now) return 'repaired';
    this.#state = now;
    if (!this.#exists) return this.#done('gone');
    if (own) return this.#through(own);
    const opening = this.#openMonitor();
    const waited = new AbortController();
    const inTime = await Promise.race([
      opening.catch(() => undefined),
      sleep(MONITOR_MS, undefined, { signal: waited.signal }).catch(() => undefined),
    ]);
    waited.abort();
    if (!inTime && this.#exists) await this.#withoutMonitor().catch(() => {});
    const qmp = await opening.catch((error: unknown) => {
      if (this.#exists) throw error;
    });
    if (!qmp) return this.#done('gone');
    try {
      return await this.#through(qmp);
    } finally {
      await qmp.close();
    }
  }

  get #exists(): boolean {
    return exists(this.#state.vm, this.#state.monitor);
  }

  #check(): void {
    if (!this.#exists) throw new KvmiError('E_GONE', 'the VM has ended');
  }

  #done(outcome: 'repaired' | 'gone'): Attempt {
    rmSync(this.#path, { force: true });
    return outcome;
  }

  /** Nobody else is let in; who only reads makes room. */
  async #openMonitor(): Promise<QmpTransport> {
    const { monitor, vm } = this.#state;
    const qmp = await openQmp(monitor, { offer: false, ...(vm.socket !== null && { identity: vm.socket }) });
    try {
      await qmp.claim();
      return qmp;
    } catch (error) {
      await qmp.close();
      throw error;
    }
  }

  async #through(qmp: QmpTransport): Promise<Attempt> {
    if (!(await isAt(this.#state.vm, qmp)) || !this.#exists) return this.#done('gone');
    const { vm, workspace: path, stub } = this.#state;
    const workspace = new Workspace(vm.pid ?? undefined, path);
    const conts = new Conts(qmp);
    try {
      const plan = await this.#stub(qmp, stub, workspace);
      this.#check();
      const status = await statusOf(qmp);
      // An instruction that was executed for kvmi ends in `debug`, whoever had paused the VM before.
      if (status !== 'debug' || this.#state.borrowed === null) this.#wanted ||= RUNS.has(status);
      await addStub(qmp, plan, workspace);
      this.#check();
      const gdb = await connectStub(plan, qmp);
      const left = await this.#within(gdb, (client) => this.#undo(client, { qmp, workspace, conts }));
      this.#check();
      await closeStub(qmp, plan);
      await this.#release(qmp);
      if (left || !(await this.#runsAsWanted(qmp))) return 'again';
    } finally {
      conts.end();
      workspace.remove();
    }
    return this.#done('repaired');
  }

  /** A stub of our own, instead of the one that was lost; a free one of somebody else as it is. */
  async #stub(qmp: QmpTransport, before: StubPlan, workspace: Workspace): Promise<StubPlan> {
    this.#check();
    const existing = await chardevOf(qmp);
    if (existing === undefined) return { address: { path: workspace.socket }, own: true };
    if (before.own && existing.includes(`unix:${workspace.socket}`)) {
      await closeStub(qmp, before);
      return before;
    }
    if (!before.own && existing.startsWith('disconnected:')) return before;
    throw new KvmiError('E_BUSY', 'a debugger is attached to the gdbstub');
  }

  /** What is in QEMU and not in the guest. */
  async #release(qmp: QmpTransport): Promise<void> {
    this.#check();
    await new StopCounter(qmp).remove();
    await removeNodes(qmp, this.#state.nodes);
    // Not while a migration is under way: then it stays on in a QEMU that is about to end.
    if (this.#state.migrationEvents) await setMigrationEvents(qmp, false).catch(() => {});
  }

  /** The guest runs again even where the monitor is held by somebody who does not answer. */
  async #withoutMonitor(): Promise<void> {
    const { stub, vm } = this.#state;
    this.#check();
    if (this.#undone) return;
    const gdb = await connectStub(stub);
    if (gdb.peer !== undefined && vm.pid !== null && gdb.peer !== vm.pid) return gdb.close();
    this.#undone = !(await this.#within(gdb, (client) => this.#undo(client)));
  }

  async #within<T>(gdb: GdbClient, work: (gdb: GdbClient) => Promise<T>): Promise<T> {
    const timer = setTimeout(() => gdb.close(), UNDO_MS);
    try {
      return await work(gdb);
    } finally {
      clearTimeout(timer);
      gdb.close();
    }
  }

  /** With every vCPU stopped: guest code as it was, no breakpoint, no unfinished step. True when something is left. */
  async #undo(gdb: GdbClient, { qmp, workspace, conts }: Partial<Means> = {}): Promise<boolean> {
    const { patches: entries, handlers, borrowed, tcg } = this.#state;
    const patches = new Patches(() => {}, entries);
    let states: Promise<ReadonlyMap<number, CpuState>> | undefined;
    const readStates = async (): Promise<ReadonlyMap<number, CpuState>> => {
      if (!qmp || !workspace) throw new Error('no monitor');
      return new StateReader(qmp, workspace, () => gdb.vcpus, tcg).read(gdb);
    };
    const vcpus = gdb.vcpus.map((index) => ({
      index,
      gdb,
      async state() {
        states ??= readStates();
        return (await states).get(index)!;
      },
      changed() {},
    }));
    this.#check();
    if (borrowed && gdb.vcpus.includes(borrowed.vcpu)) await giveBack(gdb, borrowed);
    const known = new Set(handlers.map((gva) => BigInt(`0x${gva}`)));
    const left = await patches.restore(memoryOf(gdb), vcpus, known);
    const gone = qmp !== undefined && (await hasLeft(qmp));
    // Also in a VM that others have paused: what is left would stop it again and again once it is to go on.
    if (!gone) for (const { index } of vcpus) await gdb.forgetStep(index, () => conts?.expect());
    await gdb.restoreModes();
    // What others did before this is answered is known then; nothing is sent to the stub after it that would stop the VM.
    this.#check();
    if (qmp) await statusOf(qmp);
    this.#wanted ||= this.#state.running || (conts?.any ?? false);
    await gdb.detach(this.#wanted && !gone);
    return left.length > 0;
  }

  /** That the VM runs is seen twice: QEMU may stop it once more for what it had been asked before. */
  async #runsAsWanted(qmp: QmpTransport): Promise<boolean> {
    if (!this.#wanted) return true;
    for (const stopped of [['debug', 'paused'], ['debug']]) {
      this.#check();
      if (stopped.includes(await statusOf(qmp))) return false;
      await sleep(SETTLE_MS);
    }
    return true;
  }
}

/** Where the monitor is there. */
interface Means {
  readonly qmp: QmpTransport;
  readonly workspace: Workspace;
  readonly conts: Conts;
}

/** Whether others let the VM run while it is repaired. */
class Conts {
  #resumes = 0;
  readonly end: () => void;

  constructor(qmp: QmpTransport) {
    this.end = qmp.onEvent(({ name }) => {
      if (name === 'RESUME') this.#resumes++;
    });
  }

  /** A resume of ours comes. */
  expect(): void {
    this.#resumes--;
  }

  get any(): boolean {
    return this.#resumes > 0;
  }
}

/** Every register is tried: what is refused is left as it is. Nothing is done where others have let the vCPU run on. */
async function giveBack(gdb: GdbClient, { vcpu, registers, places }: BorrowedVcpu): Promise<void> {
  const rip = await gdb.readRegister(vcpu, 'rip');
  if (!places.includes(rip.toString(16))) return;
  await Promise.allSettled(
    registers.map(([name, value]) => gdb.writeRegister(vcpu, name, BigInt(`0x${value}`))),
  );
}

/** Guest memory as the gdbstub shows it. */
function memoryOf(gdb: GdbClient): PhysicalMemory {
  return {
    regions: [],
    read: (gpa, into) => gdb.readPhysical(gpa, into),
    write: (gpa, from) => gdb.writePhysical(gpa, from),
  };
}

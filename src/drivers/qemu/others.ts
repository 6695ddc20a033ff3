import { setTimeout as sleep } from 'node:timers/promises';
import { EVENTS_MISSED, type QmpConnection } from './qmp.ts';
import { StopCounter } from './stop-counter.ts';
import { hasLeft, isRunning, statusOf } from './stub.ts';

/** How long a resume waits for what others want: a monitor that is not answered must not hold the guest. */
const LOOK_MS = 1000;
/** How long after a stop QEMU may take to begin with a snapshot. */
const COPY_MS = 50;
/** When a `stop` is seen later than this after a resume, a `cont` may have come since, which does nothing to a VM that runs. */
const LATE_MS = 250;

/** What {@link Others} tells and asks. */
export interface OthersOwner {
  /** Somebody else lets the VM run. */
  resumed(): void;
  /** Others have changed what they want. */
  changed(paused: boolean): void;
  /** Whether snapshots can neither be made nor loaded, because of us. */
  refuses(): boolean;
}

/**
 * Whether others – a user of the monitor, a management layer, a backup – want the VM stopped.
 *
 * A `stop` of theirs changes nothing and sends no event while the gdbstub has stopped the VM. So the stops are counted,
 * by QEMU: those that are more than our own are others'. A `cont` is a RESUME event that is not due to us, and is the last
 * word about every stop before it.
 */
export class Others {
  readonly #qmp: QmpConnection;
  readonly #counter: StopCounter;
  readonly #owner: OthersOwner;
  #paused = false;
  #counted = 0;
  /** Stops that QEMU counts and the gdbstub does not report, and others' that have been taken into account. */
  #known = 0;
  /** What is counted at the next look says nothing of what others want. */
  #void = false;
  /** RESUME events that will come because of us. */
  #resumesDue = 0;
  /** How often others have let the VM run. */
  #conts = 0;
  #active = false;
  /** What QEMU said of its last snapshot or migration. */
  #migration = '';
  /** A look that was not answered yet. */
  #look: Promise<void> | undefined;

  constructor(qmp: QmpConnection, owner: OthersOwner) {
    this.#qmp = qmp;
    this.#counter = new StopCounter(qmp);
    this.#owner = owner;
    qmp.onEvent(({ name }) => {
      if (!this.#active) return;
      if (name === EVENTS_MISSED) void this.#missed();
      if (name !== 'RESUME') return;
      if (this.#resumesDue > 0) this.#resumesDue--;
      else this.#letRun();
    });
  }

  /** Whether others want the VM stopped, as far as is known. */
  get paused(): boolean {
    return this.#paused;
  }

  /** To be called before the gdbstub is attached, with whether the VM ran when that was asked last. */
  async begin(ran: boolean): Promise<void> {
    this.#counted = this.#known = this.#resumesDue = 0;
    this.#void = false;
    this.#paused = !ran;
    this.#active = true;
    await this.#counter.add();
    this.#migration = await this.#lastCopy();
    // From here on nothing that others do is missed: what they did before shows in the run state.
    for (let before = -1; before !== this.#conts; ) {
      before = this.#conts;
      const running = await isRunning(this.#qmp);
      if (before === this.#conts) this.#set(!running);
    }
    await this.settle(0);
  }

  /** To be called when the gdbstub is given up. */
  async end(): Promise<void> {
    this.#active = false;
    await this.#counter.remove();
  }

  /** A resume of ours comes. */
  expectResume(): void {
    this.#resumesDue++;
  }

  /** QEMU is told to stop the VM by us, and the gdbstub will not report it. */
  expectStop(): void {
    this.#known++;
  }

  /** The gdbstub says that somebody else stopped the VM. What is in force is what they asked last. */
  async stopped(): Promise<void> {
    const running = await inTime(isRunning(this.#qmp)).catch(() => undefined);
    if (running) return;
    this.#resumesDue = 0;
    this.#set(true);
  }

  /**
   * Several vCPUs may have come to a breakpoint at once: QEMU stops the VM for each of them, and reports one. `most` is
   * how many stops this may have been beyond those that the gdbstub `reported`. To be called right after the stop.
   */
  async stoppedAtOnce(most: number, reported: number): Promise<void> {
    if (await this.#count()) this.#known += Math.min(most, Math.max(0, this.#excess(reported)));
    // They cannot be told from others' any more. A stop that is lost harms less than a guest that nobody lets run.
    else this.#void = true;
  }

  /** To be called at each stop: what others did before they let the VM run is over. */
  async settle(reported: number): Promise<void> {
    if (this.#void && (await this.#count())) this.#takeExcess(reported);
  }

  /** With the VM stopped by us, after `reported` stops: whether it may run on. */
  async mayRun(reported: number): Promise<boolean> {
    if (this.#paused) return false;
    if (!(await this.#count())) return !this.#paused;
    if (this.#takeExcess(reported)) await this.#wanted();
    return !this.#paused;
  }

  /**
   * With the VM let run by us, after `reported` stops: whether others had stopped it between {@link mayRun} and that. False
   * when it has been stopped again since: then the next look tells.
   */
  async stoppedBefore(reported: () => number): Promise<boolean> {
    const before = reported();
    const since = performance.now();
    const counted = this.#count();
    const running = await inTime(isRunning(this.#qmp)).catch(() => undefined);
    if (!(await counted) || !running || reported() !== before || !this.#takeExcess(before)) return false;
    if (performance.now() - since > LATE_MS) return false;
    await this.#wanted();
    return this.#paused;
  }

  /** Others want the VM stopped, if it was them or it runs elsewhere now, and they do not let it run while that is found out. */
  async #wanted(): Promise<void> {
    const before = this.#conts;
    const meant = !(await this.#excused()) || (await inTime(hasLeft(this.#qmp)).catch(() => undefined));
    if (meant && this.#conts === before) this.#set(true);
  }

  /** Whether QEMU has stopped the VM on its way to something else than what others asked for. */
  async #excused(): Promise<boolean> {
    if (await this.#copied()) return true;
    if (!this.#owner.refuses()) return false;
    // It stays stopped when a snapshot cannot be loaded.
    return (await inTime(statusOf(this.#qmp)).catch(() => undefined)) === 'restore-vm';
  }

  /** Whether a snapshot was made, or a migration, since this was asked last: they stop the VM on their way. */
  async #copied(): Promise<boolean> {
    const before = this.#migration;
    // A snapshot stops the VM before QEMU says anything of it, and then answers nothing until it is made.
    await sleep(COPY_MS);
    this.#migration = await this.#lastCopy();
    return this.#migration !== before;
  }

  async #lastCopy(): Promise<string> {
    const copy = await inTime(this.#qmp.execute('query-migrate')).catch(() => undefined);
    return JSON.stringify(copy ?? null);
  }

  #letRun(): void {
    this.#conts++;
    this.#void = true;
    this.#set(false);
    this.#owner.resumed();
  }

  /** RESUME events that are due may never come, and the one by which others let the VM run may have been missed. */
  async #missed(): Promise<void> {
    this.#resumesDue = 0;
    if (!this.#paused) return;
    const running = await inTime(isRunning(this.#qmp)).catch(() => undefined);
    if (running && this.#paused) this.#letRun();
  }

  #excess(reported: number): number {
    return this.#counted - this.#known - reported;
  }

  /** Whether others have stopped the VM since the last look. */
  #takeExcess(reported: number): boolean {
    const excess = this.#excess(reported);
    const meant = excess > 0 && !this.#void;
    this.#known += Math.max(0, excess);
    this.#void = false;
    return meant;
  }

  /** False when QEMU does not answer in time. */
  async #count(): Promise<boolean> {
    if (this.#look) await inTime(this.#look);
    if (this.#look) return false;
    const look = this.#counter.take().then(
      (stops) => {
        this.#counted += stops;
        this.#look = undefined;
      },
      () => {
        this.#look = undefined;
      },
    );
    this.#look = look;
    await inTime(look);
    return this.#look === undefined;
  }

  #set(paused: boolean): void {
    if (this.#paused === paused) return;
    this.#paused = paused;
    this.#owner.changed(paused);
  }
}

/** What `work` comes to, or undefined when that takes too long. */
function inTime<T>(work: Promise<T>): Promise<T | undefined> {
  let timer: NodeJS.Timeout;
  const late = new Promise<undefined>((resolve) => {
    timer = setTimeout(() => resolve(undefined), LOOK_MS);
  });
  return Promise.race([work, late]).finally(() => clearTimeout(timer));
}

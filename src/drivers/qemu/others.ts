import { setTimeout as sleep } from 'node:timers/promises';
import { EVENTS_MISSED, type QmpConnection } from './qmp.ts';
import { StopCounter } from './stop-counter.ts';
import { hasLeft, isRunning, statusOf } from './stub.ts';

/** How long a resume waits for what others want: a monitor that is not answered must not hold the guest. */
const LOOK_MS = 1000;
/** How much later than an answer an event may come that was sent before it: libvirt passes the two on apart. */
const EVENT_MS = 50;
/** A migration that ends so did not stop the VM, or let it run again. */
const COPIED_NOT = new Set(['failed', 'cancelled']);
/** When a `stop` is seen later than this after a resume, a `cont` may have come since, which does nothing to a VM that runs. */
const LATE_MS = 250;

/** After so many stops of ours they are counted: QEMU tells no more than eight at once, and others' are among them. */
const COUNT_AFTER = 4;

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
  /** Stops of ours since the last look. */
  #uncounted = 0;
  /** {@link #conts} before the last look. */
  #lookedAfter = 0;
  /** What is counted at the next look says nothing of what others want. */
  #void = false;
  /** RESUME events that will come because of us. */
  #resumesDue = 0;
  /** How often others have let the VM run. */
  #conts = 0;
  #active = false;
  /** Snapshots and migrations that were begun, each of which stops the VM once. */
  #copies = 0;
  /** A look that was not answered yet. */
  #look: Promise<void> | undefined;

  constructor(qmp: QmpConnection, owner: OthersOwner) {
    this.#qmp = qmp;
    this.#counter = new StopCounter(qmp);
    this.#owner = owner;
    qmp.onEvent(({ name, data }) => {
      if (!this.#active) return;
      if (name === EVENTS_MISSED) void this.#missed();
      if (name === 'MIGRATION') this.#copy(String(data.status));
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
    this.#counted = this.#known = this.#uncounted = this.#resumesDue = this.#copies = 0;
    this.#void = false;
    this.#paused = !ran;
    this.#active = true;
    await this.#counter.add();
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
    if (++this.#uncounted >= COUNT_AFTER) void this.look();
  }

  /** The gdbstub says that somebody else stopped the VM. What is in force is what they asked last. */
  async stopped(): Promise<void> {
    const before = this.#conts;
    const running = await this.#inTime(isRunning);
    if (running || this.#conts !== before) return;
    this.#resumesDue = 0;
    this.#set(true);
  }

  /** Counts the stops until now. False when QEMU does not answer in time. */
  async look(): Promise<boolean> {
    if (this.#look) await inTime(this.#look);
    if (this.#look) return false;
    this.#uncounted = 0;
    this.#lookedAfter = this.#conts;
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

  /**
   * Several vCPUs may have come to a breakpoint at once: QEMU stops the VM for each of them, and reports one. `most` is
   * how many stops this may have been beyond those that the gdbstub `reported`; `looked` is what {@link look} answered, which
   * was called right after the stop.
   */
  stoppedAtOnce(looked: boolean, most: number, reported: number): void {
    if (looked) this.#known += Math.min(most, this.#excess(reported));
    // They cannot be told from others' any more. A stop that is lost harms less than a guest that nobody lets run.
    else this.#void = true;
  }

  /** To be called at each stop: what others did before they let the VM run is over. */
  async settle(reported: number): Promise<void> {
    if (this.#void && (await this.look())) this.#takeExcess(reported);
  }

  /** With the VM stopped by us, after `reported` stops: whether it may run on. */
  async mayRun(reported: number): Promise<boolean> {
    if (this.#paused) return false;
    if (!(await this.look())) return !this.#paused;
    // They have let it run meanwhile: what was counted may be a stop since then, which is still to be reported.
    if (this.#lookedAfter !== this.#conts) return !this.#paused;
    await this.#consider(this.#takeExcess(reported));
    return !this.#paused;
  }

  /**
   * With the VM let run by us, after `reported` stops: whether others had stopped it between {@link mayRun} and that. False
   * when it has been stopped again since: then the next look tells.
   */
  async stoppedBefore(reported: () => number): Promise<boolean> {
    const before = reported();
    const since = performance.now();
    const counted = this.look();
    const running = await this.#inTime(isRunning);
    if (!(await counted) || !running || reported() !== before) return false;
    const excess = this.#takeExcess(before);
    if (performance.now() - since > LATE_MS) return false;
    await this.#consider(excess);
    return this.#paused;
  }

  /**
   * The VM was stopped so many times, and not by us: others want it stopped, unless QEMU did that on its way to something
   * else, or they let it run while that is found out.
   */
  async #consider(stops: number): Promise<void> {
    if (stops === 0) return;
    const before = this.#conts;
    if (this.#copies < stops) await sleep(EVENT_MS);
    const copies = Math.min(stops, this.#copies);
    this.#copies -= copies;
    const meant = stops > copies ? !(await this.#isRefusal()) : await this.#inTime(hasLeft);
    if (meant && this.#conts === before) this.#set(true);
  }

  /** Whether the VM is stopped because a snapshot could not be loaded, and that because of us. */
  async #isRefusal(): Promise<boolean> {
    return this.#owner.refuses() && (await this.#inTime(statusOf)) === 'restore-vm';
  }

  async #inTime<T>(ask: (qmp: QmpConnection) => Promise<T>): Promise<T | undefined> {
    return inTime(ask(this.#qmp)).catch(() => undefined);
  }

  #copy(status: string): void {
    if (status === 'setup') this.#copies++;
    else if (COPIED_NOT.has(status)) this.#copies = Math.max(0, this.#copies - 1);
  }

  /**
   * The guest has come to a breakpoint: it has run. Where it was to stand still others have let it, and their RESUME event
   * was missed, or is still to come.
   */
  ran(): void {
    if (this.#paused) this.#goesOn();
  }

  #letRun(): void {
    this.#goesOn();
    this.#owner.resumed();
  }

  /** What was done before that is over. */
  #goesOn(): void {
    this.#conts++;
    this.#copies = 0;
    this.#void = true;
    this.#set(false);
  }

  /** RESUME events that are due may never come, and the one by which others let the VM run may have been missed. */
  async #missed(): Promise<void> {
    this.#resumesDue = 0;
    if (!this.#paused) return;
    const running = await this.#inTime(isRunning);
    if (running && this.#paused) this.#letRun();
  }

  /** After a look: how many stops are not accounted for. When there were more than QEMU tells at once that is not known. */
  #excess(reported: number): number {
    const excess = this.#counted - this.#known - reported;
    if (excess >= 0) return excess;
    this.#counted -= excess;
    return 0;
  }

  /** How often others have stopped the VM since the last look. */
  #takeExcess(reported: number): number {
    const excess = this.#excess(reported);
    const meant = this.#void ? 0 : excess;
    this.#known += excess;
    this.#void &&= this.#lookedAfter !== this.#conts;
    return meant;
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

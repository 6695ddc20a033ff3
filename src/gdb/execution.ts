import { type Deferred, deferred } from '../awaitable.ts';
import type { Guest, GuestEvent, GuestVcpu, Paused, ProbeHit, Registers } from '../tool/index.ts';
import { isNotStarted } from '../tool/not-started.ts';
import { GdbBreakpoints } from './breakpoints.ts';
import { NEEDED_MSRS, type RegisterSource } from './registers.ts';

/** Signal numbers as GDB counts them. */
export const SIGNAL = { interrupt: 2, trap: 5 } as const;

/** Why the guest stopped. */
export interface StopReason {
  readonly signal: number;
  readonly vcpu: GuestVcpu;
  readonly breakpoint: boolean;
}

/** How a vCPU goes on. */
export type Resumption = 'continue' | 'step';

/** A vCPU that is held at a breakpoint, by the handler that waits. */
interface Held {
  readonly hit: ProbeHit;
  readonly resumed: Deferred<void>;
}

/** The guest as GDB's all-stop mode has it: all vCPUs are stopped, or GDB waits for the next stop. */
export class Execution {
  readonly guest: Guest;
  readonly breakpoints: GdbBreakpoints;
  readonly #onStop: (reason: StopReason) => void;
  readonly #report: (error: unknown) => void;
  readonly #held = new Map<GuestVcpu, Paused>();
  readonly #hits = new Map<GuestVcpu, Held>();
  /** Where each step started. */
  readonly #stepping = new Map<GuestVcpu, bigint | undefined>();
  /** Registers since the last stop, with what was assigned. */
  readonly #registers = new Map<GuestVcpu, Registers>();
  readonly #forgetSteps: () => void;
  #halting: Promise<void> | undefined;
  #running = true;
  #left = false;

  constructor(guest: Guest, onStop: (reason: StopReason) => void, report: (error: unknown) => void) {
    this.guest = guest;
    this.#onStop = onStop;
    this.#report = report;
    this.breakpoints = new GdbBreakpoints(guest, (hit) => this.#hit(hit));
    this.#forgetSteps = guest.on('SINGLESTEP', (event) => this.#stepped(event));
  }

  get running(): boolean {
    return this.#running;
  }

  /** Stops every vCPU, then tells `onStop`. The first reason counts. What cannot be stopped is reported. */
  halt(reason: StopReason): Promise<void> {
    if (!this.#running) return this.#halting ?? Promise.resolve();
    this.#running = false;
    this.#halting = this.#halt(reason).finally(() => {
      this.#halting = undefined;
    });
    return this.#halting;
  }

  async #halt(reason: StopReason): Promise<void> {
    await Promise.all(this.guest.vcpus.map((vcpu) => this.#hold(vcpu)));
    const stepping = [...this.#stepping.keys()];
    this.#stepping.clear();
    await Promise.all(stepping.map((vcpu) => vcpu.singlestep(false).catch(this.#report)));
    if (this.#left) return;
    await this.breakpoints.restore(this.#report);
    this.#onStop(reason);
  }

  async #hold(vcpu: GuestVcpu): Promise<void> {
    if (this.#held.has(vcpu)) return;
    try {
      this.#held.set(vcpu, await vcpu.pause());
    } catch (error) {
      this.#report(error);
    }
  }

  async #hit(hit: ProbeHit): Promise<void> {
    if (this.#left) return;
    const { vcpu } = hit;
    const reported = this.#running;
    const resumed = deferred<void>();
    this.#hits.set(vcpu, { hit, resumed });
    const reason = { signal: SIGNAL.trap, vcpu, breakpoint: true };
    if (reported) this.halt(reason).catch(this.#report);
    await resumed.promise;
    // Another stop was reported meanwhile: this one happens again, if the breakpoint is still there.
    if (!reported) hit.retry();
  }

  async #stepped({ vcpu, data, rip }: GuestEvent<'SINGLESTEP'>): Promise<void> {
    if (!this.#stepping.has(vcpu)) return;
    // Another stop came in between and nothing was carried out: once more.
    if (data.failed && rip === this.#stepping.get(vcpu)) return;
    // The hold is taken at once, so that the answer waits for it.
    await this.halt({ signal: SIGNAL.trap, vcpu, breakpoint: false });
  }

  /** Lets vCPUs go on; those that are not named stay where they are. Throws when one cannot be stepped. */
  async resume(how: ReadonlyMap<GuestVcpu, Resumption>): Promise<void> {
    for (const [vcpu, kind] of how) if (kind === 'step') await this.#prepareStep(vcpu);
    this.#running = true;
    this.#registers.clear();
    for (const vcpu of how.keys()) this.#release(vcpu);
  }

  async #prepareStep(vcpu: GuestVcpu): Promise<void> {
    const registers = await this.registers(vcpu);
    // At a hit of its own means the machine carries the instruction out by itself.
    const which = this.#hits.has(vcpu) ? 'memory' : 'all';
    if (registers) await this.breakpoints.lift(registers.rip, 1, which);
    try {
      await vcpu.singlestep(true);
      this.#stepping.set(vcpu, registers?.rip);
    } catch (error) {
      await this.breakpoints.restore(this.#report);
      throw error;
    }
  }

  #release(vcpu: GuestVcpu): void {
    const held = this.#hits.get(vcpu);
    this.#hits.delete(vcpu);
    held?.resumed.resolve();
    const paused = this.#held.get(vcpu);
    this.#held.delete(vcpu);
    paused?.resume();
  }

  /** The registers of a stopped vCPU; undefined when it has none to show, as one that was not started. */
  async registers(vcpu: GuestVcpu): Promise<Registers | undefined> {
    const known = this.#hits.get(vcpu)?.hit.registers ?? this.#registers.get(vcpu);
    if (known) return known;
    try {
      const registers = await vcpu.registers(NEEDED_MSRS);
      this.#registers.set(vcpu, registers);
      return registers;
    } catch (error) {
      if (!isNotStarted(error)) this.#report(error);
      return undefined;
    }
  }

  /** Everything that registers are read from. */
  async source(vcpu: GuestVcpu): Promise<RegisterSource> {
    const [registers, xsave] = await Promise.all([this.registers(vcpu), vcpu.xsave().catch(() => undefined)]);
    return { registers, xsave };
  }

  /** Sets what was assigned in the registers of a stopped vCPU. */
  async assign(vcpu: GuestVcpu, registers: Registers): Promise<void> {
    // At a breakpoint they are set when its handler is done.
    if (!this.#hits.has(vcpu)) await vcpu.setRegisters(registers);
  }

  /** Undoes everything; the guest runs on. */
  async leave(): Promise<void> {
    if (this.#left) return;
    this.#left = true;
    await this.#halting?.catch(this.#report);
    this.#running = true;
    await this.breakpoints.removeAll();
    await Promise.all([...this.#stepping.keys()].map((vcpu) => vcpu.singlestep(false).catch(this.#report)));
    this.#stepping.clear();
    for (const vcpu of this.guest.vcpus) this.#release(vcpu);
    this.#forgetSteps();
  }
}

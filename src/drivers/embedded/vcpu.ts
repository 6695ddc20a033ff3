import { hasErrorCode } from '../../abi/x86.ts';
import { type Awaitable, isPending } from '../../awaitable.ts';
import { KvmiError } from '../../error.ts';
import {
  type Answer,
  CONTINUE,
  type CpuidLeaf,
  type Exception,
  type Gpa,
  type MachineHandler,
  type Trap,
  type Vcpu,
} from '../../machine/index.ts';
import { mtrrType } from '../../machine/mtrr.ts';
import { applyAnswer } from './cpu/answer.ts';
import { Cpu, type CpuSurroundings } from './cpu/cpu.ts';
import { cpuidLeaf } from './cpu/cpuid.ts';
import { GuestEvent } from './cpu/event.ts';
import { EXIT, type Exit, run } from './cpu/run.ts';
import { ARMED, ATTENTION } from './cpu/signals.ts';
import type { CpuStop, ProbeStop } from './cpu/stops.ts';
import { highHalf, join64, lowHalf } from './cpu/wide.ts';
import { isAcceptableXsave } from './cpu/xsave.ts';
import type { Apic } from './devices/apic.ts';
import { TSC_HZ } from './devices/clock.ts';
import { StateBlock } from './state.ts';

/** What a vCPU needs of its machine. */
export interface VcpuOwner {
  /** Who is attached. */
  readonly handler: MachineHandler | undefined;
  /** Changes with every attach and detach: answers of another session are void. */
  readonly session: number;
  /** A vCPU came to the probe at an address. */
  hitProbe(vcpu: EmbeddedVcpu, address: bigint): Awaitable<'retry' | undefined>;
  /** The vCPU may have something to do now. */
  wake(vcpu: EmbeddedVcpu): void;
  /** The vCPU left the guest for good. */
  crashed(vcpu: EmbeddedVcpu, reason: CrashReason): void;
  /** The handler threw. */
  handlerFailed(error: unknown): void;
}

/** Why a vCPU left the guest for good: it could not deliver an exception, or an answer said so. */
export type CrashReason = 'triple fault' | 'answer';

const ARMED_BIT = {
  breakpoint: ARMED.breakpoint,
  xsetbv: ARMED.xsetbv,
  descriptor: ARMED.descriptor,
  hypercall: ARMED.hypercall,
  cpuid: ARMED.cpuid,
} as const;
const CR_BIT = { 0: ARMED.cr0, 3: ARMED.cr3, 4: ARMED.cr4 } as const;

/** Whether some vCPU runs: parts of the interpreter are shared by all of them. */
let inGuest = false;

/** One vCPU of an embedded machine: the processor, and its conversation with the handler. */
export class EmbeddedVcpu implements Vcpu {
  readonly index: number;
  readonly tscHz = TSC_HZ;
  /** @internal */
  readonly cpu: Cpu;
  started: boolean;
  /** Instructions executed since the machine was made or reset. */
  instructions = 0;
  readonly #owner: VcpuOwner;
  readonly #state: StateBlock;
  readonly #event = new GuestEvent();
  /** While a promise of the handler is open: what happens when the handler goes away instead of answering. */
  #abandoned: (() => void) | undefined;
  /** Whether the page stop that was answered last was let go on. */
  #goesOn = false;

  /** @internal */
  constructor(index: number, apic: Apic, surroundings: CpuSurroundings, owner: VcpuOwner) {
    this.index = index;
    this.started = index === 0;
    this.cpu = new Cpu(index, apic, surroundings);
    this.cpu.onPageStop = this.#pageStop;
    this.#state = new StateBlock(this.cpu);
    this.#owner = owner;
  }

  /** Whether it would do something if it were given time. */
  get runnable(): boolean {
    if (!this.started || this.waiting || this.cpu.dead) return false;
    const wakes = this.cpu.attention & ~(ATTENTION.halt | ATTENTION.step | ATTENTION.leave);
    return !this.cpu.halted || wakes !== 0;
  }

  /** Whether the handler has not answered yet. @internal */
  get waiting(): boolean {
    return this.#abandoned !== undefined;
  }

  request(): void {
    this.cpu.attention |= ATTENTION.request;
    this.#owner.wake(this);
  }

  readState(into: Uint8Array): void {
    this.#state.read(into);
  }

  writeRegisters(regs: Uint8Array): void {
    if (regs.length !== 144) {
      throw new KvmiError('E_ARGUMENT', `writeRegisters: kvm_regs has 144 bytes, not ${regs.length}`);
    }
    this.#state.writeRegisters(regs);
    this.cpu.changes++;
  }

  readMsr(index: number): bigint | undefined {
    return this.cpu.msrs.get(index);
  }

  cpuid(leaf: number, subleaf: number): CpuidLeaf | undefined {
    return cpuidLeaf(this.cpu, leaf, subleaf);
  }

  xcr0(): bigint {
    return BigInt(this.cpu.xcr0);
  }

  readXsave(into: Uint8Array): void {
    into.set(this.cpu.xsave);
  }

  writeXsave(area: Uint8Array): boolean {
    if (!isAcceptableXsave(area)) return false;
    this.cpu.xsave.set(area);
    return true;
  }

  mtrrType(gpa: Gpa): number {
    return mtrrType((index) => this.cpu.msrs.get(index)!, gpa);
  }

  inject(exception: Exception): void {
    const event = this.#event;
    event.set(exception.vector, hasErrorCode(exception.vector), exception.errorCode | 0);
    event.addressLo = lowHalf(exception.address);
    event.addressHi = highHalf(exception.address);
    this.cpu.inject(event);
  }

  /** Arms or disarms a trap of this vCPU. @internal */
  setTrap(trap: Exclude<Trap, { kind: 'page' }>, armed: boolean): void {
    const c = this.cpu;
    if (trap.kind === 'singlestep') {
      c.attention = armed ? c.attention | ATTENTION.step : c.attention & ~ATTENTION.step;
      c.stepFailed = false;
    } else if (trap.kind === 'msr') {
      if (armed) c.armedMsrs.add(trap.msr);
      else c.armedMsrs.delete(trap.msr);
    } else {
      const bit = trap.kind === 'cr' ? CR_BIT[trap.cr] : ARMED_BIT[trap.kind];
      c.armed = armed ? c.armed | bit : c.armed & ~bit;
    }
  }

  /** Takes away every trap, and what the handler left undone. An open stop counts as answered with continue. @internal */
  release(): void {
    const c = this.cpu;
    c.armed = 0;
    c.armedMsrs.clear();
    c.attention &= ~(ATTENTION.step | ATTENTION.request);
    c.stepFailed = false;
    c.injectionPending = false;
    if (!c.eventPending) c.attention &= ~ATTENTION.event;
    const abandoned = this.#abandoned;
    this.#abandoned = undefined;
    abandoned?.();
  }

  /** Starts an application processor in flat 32-bit code at a physical address. @internal */
  start(address: number): void {
    if (this.started) return;
    this.cpu.reset();
    this.cpu.ripLo = address;
    this.started = true;
    this.#owner.wake(this);
  }

  /** Back to the state after power-on. @internal */
  reset(): void {
    this.cpu.reset();
    this.cpu.attention &= ~ATTENTION.dead;
    this.started = this.index === 0;
    this.instructions = 0;
    this.#abandoned = undefined;
  }

  /** Makes a `run` that is going on return before the next instruction. @internal */
  leave(): void {
    this.cpu.attention |= ATTENTION.leave;
  }

  /** Runs up to `budget` instructions, handling stops; returns how many ran. Not for use in a handler. */
  run(budget: number): number {
    if (inGuest) {
      throw new KvmiError('E_REENTRANT', 'a handler cannot run a machine: it is called from within one', {
        hint: 'Answer the stop; the machine goes on by itself.',
      });
    }
    inGuest = true;
    this.cpu.attention &= ~ATTENTION.leave;
    let executed = 0;
    try {
      while (executed < budget && this.runnable) {
        const share = budget - executed;
        const exit = run(this.cpu, share);
        this.#handle(exit);
        executed += share - this.cpu.left;
        if (exit === EXIT.halt || exit === EXIT.leave) break;
      }
    } finally {
      inGuest = false;
    }
    this.instructions += executed;
    return executed;
  }

  #handle(exit: Exit): void {
    if (exit === EXIT.stop) this.#stopped();
    else if (exit === EXIT.request) this.serveRequest();
    else if (exit === EXIT.shutdown) this.crash('triple fault');
  }

  /** Calls the handler for a request, if there is one. @internal */
  serveRequest(): void {
    const c = this.cpu;
    if ((c.attention & ATTENTION.request) === 0 || this.waiting || c.dead || !this.started) return;
    c.attention &= ~ATTENTION.request;
    const { handler } = this.#owner;
    if (!handler) return;
    this.#ask(
      () => handler.request(this),
      (answer) => {
        if (answer === 'crash') this.crash('answer');
      },
      () => {},
    );
  }

  /** Tells the handler about a new vCPU. `done` is called when it may run. @internal */
  announce(done: () => void): void {
    const { handler } = this.#owner;
    if (handler?.vcpuCreated) this.#ask(() => handler.vcpuCreated!(this), done, done);
    else done();
  }

  /** @internal */
  crash(reason: CrashReason): void {
    this.cpu.attention |= ATTENTION.dead;
    this.#owner.crashed(this, reason);
  }

  #stopped(): void {
    if (this.cpu.stop.kind === 'probe') this.#hitProbe(this.cpu.stop);
    else if (!this.#owner.handler) this.#unanswered();
    else this.#ask(this.#askStop, this.#answered, this.#unanswered);
  }

  #hitProbe({ lo, hi }: ProbeStop): void {
    const c = this.cpu;
    this.#ask(
      () => this.#owner.hitProbe(this, join64(lo, hi)),
      (answer) => {
        if (answer !== 'retry' && c.ripLo === lo && c.ripHi === hi) c.grantProbe();
      },
      () => {},
    );
  }

  /**
   * A page stop from within an instruction: most are let go on with nothing changed, and then the instruction just
   * goes on. True in that case.
   */
  readonly #pageStop = (): boolean => {
    const c = this.cpu;
    const attention = c.attention & ~ATTENTION.grant;
    const changes = c.changes + c.memory.writes;
    this.#goesOn = false;
    if (this.#owner.handler) this.#ask(this.#askStop, this.#answeredPage, this.#unanswered);
    else this.#unanswered();
    if (this.waiting) this.leave();
    const unchanged =
      (c.attention & ~ATTENTION.grant) === attention && c.changes + c.memory.writes === changes;
    return this.#goesOn && unchanged;
  };

  readonly #answeredPage = (answer: Answer): void => {
    this.#goesOn = answer.action === 'continue';
    this.#answered(answer);
  };

  /* Kept, so that a stop allocates nothing. */
  readonly #askStop = () => this.#owner.handler!.stop(this, this.cpu.stop as Exclude<CpuStop, ProbeStop>);

  readonly #answered = (answer: Answer): void => {
    if (answer.action === 'crash') this.crash('answer');
    else applyAnswer(this.cpu, answer);
  };

  readonly #unanswered = (): void => applyAnswer(this.cpu, CONTINUE);

  /**
   * Calls the handler and goes on with what it answers, at once or when it arrives. After a detach, or when the
   * handler fails, `abandoned` happens instead.
   */
  #ask<T>(call: () => Awaitable<T>, answered: (value: T) => void, abandoned: () => void): void {
    const { session } = this.#owner;
    let answer: Awaitable<T>;
    try {
      answer = call();
    } catch (error) {
      abandoned();
      this.#owner.handlerFailed(error);
      return;
    }
    // The handler may have detached in the middle of its own call.
    if (session !== this.#owner.session) abandoned();
    else if (isPending(answer)) this.#wait(answer, answered, abandoned);
    else answered(answer);
  }

  #wait<T>(answer: PromiseLike<T>, answered: (value: T) => void, abandoned: () => void): void {
    const { session } = this.#owner;
    this.#abandoned = abandoned;
    const settle = (act: () => void) => {
      if (session !== this.#owner.session) return;
      this.#abandoned = undefined;
      act();
      this.#owner.wake(this);
    };
    answer.then(
      (value) => settle(() => answered(value)),
      (error) =>
        settle(() => {
          abandoned();
          this.#owner.handlerFailed(error);
        }),
    );
  }
}

import { getRegister, STATE_SIZE } from '../../abi/state.ts';
import type { Awaitable } from '../../awaitable.ts';
import type { Answer, Stop } from '../../machine/stops.ts';
import type { Exception } from '../../machine/vcpu.ts';
import type { CpuState } from './cpu-state.ts';
import type { GdbClient } from './gdb.ts';

/** A vCPU while every vCPU is stopped and the gdbstub listens. */
export interface StoppedVcpu {
  readonly index: number;
  readonly gdb: GdbClient;
  /** The state at this stop; read once, and kept while the vCPU is held. */
  state(): Promise<CpuState>;
  /** To be called when the vCPU's registers were changed: the state is read anew. */
  changed(): void;
}

/** Whether a vCPU is not any more where it was in `state`: others have let it run. */
export async function hasMoved({ gdb, index }: StoppedVcpu, state: CpuState): Promise<boolean> {
  const block = new Uint8Array(STATE_SIZE);
  state.writeBlock(block);
  const now = await Promise.all([gdb.readRegister(index, 'rip'), gdb.readRegister(index, 'rsp')]);
  return now[0] !== getRegister(block, 'rip') || now[1] !== getRegister(block, 'rsp');
}

/** What a vCPU met at a {@link TrapPoint}, for the handler to decide on. */
export interface Encounter {
  /** What the machine's handler is told. */
  readonly stop?: Stop;
  /** Called in its place where there is no stop. */
  visit?(): Awaitable<Answer>;
  /** Turns the registers as they are into those from before the effect. */
  present?(block: Uint8Array): void;
  /**
   * Carries the answer out, with every vCPU stopped. `registers` are those that the handler wrote (kvm_regs).
   * Answers whether the instruction at the trap point is now to be executed in spite of the point.
   */
  settle(vcpu: StoppedVcpu, answer: Answer, registers: Uint8Array | undefined): Promise<'run' | 'step-over'>;
}

/**
 * Points at one address are asked in this order, each when the one before it lets the instruction be executed: an
 * exception on its way comes before the instruction, and a probe before what the instruction does.
 */
export const POINT_ORDER = { delivery: 0, probe: 1, instruction: 2 } as const;

/** Something that stops each vCPU that is about to execute the instruction at some address. */
export interface TrapPoint {
  readonly order: number;
  /** Undefined when what the vCPU is about to do concerns nobody. */
  examine(vcpu: StoppedVcpu): Promise<Encounter | undefined>;
}

/** A vCPU that is outside the guest because a call of the handler is open. */
export interface Hold {
  readonly encounter: Encounter | undefined;
  state: CpuState | undefined;
  /** The state that was read last: what the handler wants is about that. */
  seen: CpuState | undefined;
  /** kvm_regs to write when the call is over. */
  registers: Uint8Array | undefined;
  exception: Exception | undefined;
  /** Set when the call is over. */
  answer: Answer | undefined;
}

/** What the run control keeps of one vCPU. */
export class VcpuRun {
  readonly index: number;
  hold: Hold | undefined;
  /** The handler's `request` is to be called. */
  requested = false;
  /** Each instruction is to be reported. */
  stepping = false;
  /** The next resume executes one instruction, past the trap point there. */
  stepOver = false;
  /** QEMU was told to step this vCPU and has not reported it: it would stop the VM even after detaching. */
  stepUnfinished = false;
  /** It was to step and did not for a while: it waits for an interrupt. */
  waits = false;
  /** It has stepped since it is to step on and on. */
  inSeries = false;
  /** It does not run while it is another one's turn to step. */
  sitsOut = false;
  /** It left the guest for good. */
  crashed = false;
  /** It was unplugged, or there is a gap in the numbers of the vCPUs. */
  absent = false;
  /** rip at the last stop, undefined when it was changed since. */
  rip: bigint | undefined;
  /** The same of rcx, where it steps. */
  rcx: bigint | undefined;
  state: CpuState | undefined;
  /** Points where it is that are to be asked when what it met before them is settled. */
  ahead: readonly TrapPoint[] = [];
  /** What is to be reported, in order. */
  readonly queue: (Encounter | Stop)[] = [];

  constructor(index: number) {
    this.index = index;
  }

  /** It cannot run. */
  get gone(): boolean {
    return this.crashed || this.absent;
  }

  /** It may run when the VM does. */
  get mayRun(): boolean {
    return !this.hold && !this.gone;
  }

  /** It has run since the VM was let run last. */
  get ran(): boolean {
    return this.mayRun && !this.sitsOut;
  }

  /** Its registers are not what was read any more. */
  forget(): void {
    this.rip = this.rcx = this.state = undefined;
    if (this.hold) this.hold.state = undefined;
  }

  /** What it was stopped for, and what was wanted of it, is about what is not there any more. */
  abandon(): void {
    this.hold = undefined;
    this.stepOver = false;
    this.ahead = [];
    this.queue.length = 0;
    this.forget();
  }

  /** Nothing is known of it, and nothing is to be done with it. */
  reset(): void {
    this.requested = this.stepping = this.stepOver = this.stepUnfinished = this.crashed = false;
    this.waits = this.inSeries = this.sitsOut = false;
    this.rip = this.rcx = this.state = undefined;
    this.ahead = [];
    this.queue.length = 0;
  }
}

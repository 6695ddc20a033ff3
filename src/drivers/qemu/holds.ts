import { type Awaitable, then } from '../../awaitable.ts';
import { type Answer, CONTINUE, CRASH, type Stop } from '../../machine/stops.ts';
import { writeReleasedRegisters } from './registers.ts';
import { type Encounter, type Hold, hasMoved, type StoppedVcpu, type VcpuRun } from './stopped-vcpu.ts';

/** The handler behind {@link Holds}, and what becomes of its answers. */
export interface HoldsOwner {
  stop(vcpu: number, stop: Stop): Awaitable<Answer>;
  request(vcpu: number): Awaitable<'crash' | undefined>;
  /** Delivers the exception that was queued during a hold; answers what the handler is told, unless it has to wait. */
  deliver(vcpu: StoppedVcpu, hold: Hold, answer: Answer): Promise<Stop | undefined>;
  /** The call of the handler for a vCPU is over. */
  answered(): void;
  /** Whether nothing can be done in the VM any more. */
  lost(): boolean;
}

/** The calls of the handler: each holds one vCPU outside the guest until it is over. */
export class Holds {
  readonly #owner: HoldsOwner;

  constructor(owner: HoldsOwner) {
    this.#owner = owner;
  }

  /** Begins the next call that is due for a vCPU that is not held. */
  begin(vcpu: VcpuRun): void {
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

  /** Carries the answer of a call that is over out. With every vCPU stopped. */
  async end(vcpu: VcpuRun, hold: Hold, answer: Answer, stopped: StoppedVcpu): Promise<void> {
    if (vcpu.absent || (await isElsewhere(stopped, hold))) return vcpu.abandon();
    try {
      if (hold.encounter) {
        vcpu.stepOver = (await hold.encounter.settle(stopped, answer, hold.registers)) === 'step-over';
      } else if (hold.registers) {
        await writeReleasedRegisters(stopped, hold.registers);
      }
    } catch (error) {
      // What the guest's own memory or tables do not allow is left undone, and the vCPU goes on.
      if (this.#owner.lost()) throw error;
    }
    vcpu.forget();
    vcpu.crashed = answer.action === 'crash';
    if (hold.exception && !vcpu.crashed) {
      const trap = await this.#owner.deliver(stopped, hold, answer);
      if (trap) vcpu.queue.unshift(trap);
      vcpu.forget();
      vcpu.ahead = [];
    }
    vcpu.hold = undefined;
  }

  #hold(vcpu: VcpuRun, encounter: Encounter | undefined, call: () => Awaitable<Answer>): void {
    const hold: Hold = {
      encounter,
      state: vcpu.state,
      seen: vcpu.state,
      registers: undefined,
      exception: undefined,
      answer: undefined,
    };
    vcpu.hold = hold;
    const over = (answer: Answer) => {
      hold.answer ??= answer;
      this.#owner.answered();
    };
    // A handler that fails has no wish: the guest goes on as without it.
    (async () => call())().then(over, () => over(CONTINUE));
  }
}

/** Others have reset the VM, or loaded an older state: what was asked for was not about what is there now. */
async function isElsewhere(vcpu: StoppedVcpu, { seen }: Hold): Promise<boolean> {
  return seen !== undefined && (await hasMoved(vcpu, seen));
}

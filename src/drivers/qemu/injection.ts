import { getRegister, STATE_SIZE } from '../../abi/state.ts';
import { hasErrorCode } from '../../abi/x86.ts';
import type { PhysicalMemory } from '../../machine/memory.ts';
import type { Answer, Stop } from '../../machine/stops.ts';
import type { Exception } from '../../machine/vcpu.ts';
import { deliverException } from './exception-delivery.ts';
import { writeReleasedRegisters } from './registers.ts';
import type { RunControl } from './run-control.ts';
import { StoppedMemory } from './stopped-memory.ts';
import { type Encounter, type Hold, POINT_ORDER, type StoppedVcpu, type TrapPoint } from './stopped-vcpu.ts';

const VECTOR_BP = 3;
const VECTOR_PF = 14;
/** Reported when the guest has no handler that the exception could be delivered to: nothing was injected. */
export const NO_VECTOR = 0xff;

/**
 * Injects exceptions by doing what the CPU does to deliver one. A vCPU that is halted would not notice; its exception
 * waits at the instruction after hlt until an interrupt has woken it.
 */
export class Injection implements TrapPoint {
  readonly order = POINT_ORDER.delivery;
  readonly #control: RunControl;
  readonly #memory: PhysicalMemory;
  readonly #waiting = new Map<number, { readonly exception: Exception; readonly rip: bigint }>();

  constructor(control: RunControl, memory: PhysicalMemory) {
    this.#control = control;
    this.#memory = memory;
  }

  /** Injects what was queued during `hold`, which has just ended with `answer`. What to report, unless it waits. */
  async deliver(vcpu: StoppedVcpu, hold: Hold, answer: Answer): Promise<Stop | undefined> {
    const exception = hold.exception!;
    const state = await vcpu.state();
    // A #BP that goes on to the guest is an event that must be delivered first, and takes the place.
    if (hold.encounter?.stop?.kind === 'breakpoint' && answer.action === 'continue') {
      const block = new Uint8Array(STATE_SIZE);
      state.writeBlock(block);
      return { kind: 'trap', vector: VECTOR_BP, errorCode: 0, address: getRegister(block, 'cr2') };
    }
    if (!state.halted) return this.#deliverNow(vcpu, exception);
    this.#waiting.set(vcpu.index, { exception, rip: state.rip });
    await this.#control.points.add(vcpu.gdb, state.rip, this);
    return undefined;
  }

  async examine(vcpu: StoppedVcpu): Promise<Encounter | undefined> {
    const waiting = this.#waiting.get(vcpu.index);
    if (waiting === undefined || (await vcpu.state()).halted) return undefined;
    this.#waiting.delete(vcpu.index);
    const shared = [...this.#waiting.values()].some(({ rip }) => rip === waiting.rip);
    if (!shared) await this.#control.points.remove(vcpu.gdb, waiting.rip, this);
    const stop = await this.#deliverNow(vcpu, waiting.exception);
    return {
      stop,
      async settle(stopped, _answer, registers) {
        if (registers) await writeReleasedRegisters(stopped, registers);
        return 'run';
      },
    };
  }

  /** Forgets what waits. */
  clear(): void {
    this.#waiting.clear();
  }

  async #deliverNow(vcpu: StoppedVcpu, exception: Exception): Promise<Stop> {
    const { vector, errorCode, address } = exception;
    const block = new Uint8Array(STATE_SIZE);
    (await vcpu.state()).writeBlock(block);
    const cr2 = getRegister(block, 'cr2');
    try {
      await deliverException(new StoppedMemory(this.#memory, vcpu.gdb), vcpu, block, exception);
    } catch {
      return { kind: 'trap', vector: NO_VECTOR, errorCode: 0, address: cr2 };
    }
    vcpu.changed();
    return {
      kind: 'trap',
      vector,
      errorCode: hasErrorCode(vector) ? errorCode : 0,
      address: vector === VECTOR_PF ? address : cr2,
    };
  }
}

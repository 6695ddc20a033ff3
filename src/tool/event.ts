import { getRegister, type KvmRegs } from '../abi/index.ts';
import type { Awaitable } from '../awaitable.ts';
import {
  type Action,
  type EventData,
  type EventName,
  type EventReplyData,
  encodeEventReply,
  type ReceivedEvent,
} from '../wire/index.ts';
import { type Registers, registersOf } from './registers.ts';
import type { GuestVcpu } from './vcpu.ts';

/** What an answer can carry besides its action. */
interface Details {
  /** Registers to set before the vCPU goes on. */
  readonly registers?: Registers | KvmRegs;
}

interface NewValueDetails extends Details {
  /** What is written instead of the value that the guest wanted. */
  readonly newValue?: bigint;
}

interface PageFaultDetails extends Details {
  /** Dialect v7: bytes (at most 256) that reads at `gva` and after get instead of memory. */
  readonly substitute?: { readonly gva: bigint; readonly bytes: Uint8Array };
  /** Dialect v7: no further PF event for the current REP instruction. */
  readonly repComplete?: boolean;
}

type Retryable = 'BREAKPOINT' | 'DESCRIPTOR' | 'PF';

/** By event. `retry` enters the guest again at rip, with nothing done. */
type Actions = { [N in EventName]: N extends Retryable ? Action : 'continue' | 'crash' };
type DetailsOf = Omit<Record<EventName, Details>, 'CR' | 'MSR' | 'PF'> & {
  CR: NewValueDetails;
  MSR: NewValueDetails;
  PF: PageFaultDetails;
};
type Answers = { [N in EventName]: Actions[N] | ({ readonly action?: Actions[N] } & DetailsOf[N]) };

/** The actions that an event has. */
export type ActionOf<N extends EventName> = Actions[N];
/** What an answer can carry besides its action. */
export type AnswerDetails<N extends EventName> = DetailsOf[N];
/** How a vCPU goes on after an event: an action, or an action (`continue` if not given) with details. */
export type Answer<N extends EventName> = Answers[N];

/**
 * Decides about an event. Nothing, or nothing useful (an exception), is answered harmlessly: the guest goes
 * on as if the event had not been intercepted.
 */
// biome-ignore lint/suspicious/noConfusingVoidType: a handler that returns nothing is the most common one
export type EventHandler<N extends EventName> = (event: GuestEvent<N>) => Awaitable<Answer<N> | void>;

/** An event of any kind; `name` tells which, also to the compiler. */
export type AnyEvent = { [N in EventName]: GuestEvent<N> }[EventName];

/**
 * Something that a vCPU did. The vCPU is outside the guest until the event is answered; meanwhile its state
 * can be read and changed with the commands of {@link GuestVcpu}.
 */
export class GuestEvent<N extends EventName = EventName> {
  readonly name: N;
  readonly vcpu: GuestVcpu;
  readonly data: EventData[N];
  /** What is answered when nobody decides. @internal */
  otherwise: Action = 'continue';
  readonly #received: ReceivedEvent;
  #registers: Registers | undefined;
  #answered = false;

  constructor(vcpu: GuestVcpu, received: ReceivedEvent) {
    this.name = received.name as N;
    this.vcpu = vcpu;
    this.data = received.data as EventData[N];
    this.#received = received;
  }

  get seq(): number {
    return this.#received.seq;
  }

  /** The registers at the time of the event, with nine MSRs. What is assigned has to be given to the answer. */
  get registers(): Registers {
    this.#registers ??= registersOf(this.#received.state, 'event');
    return this.#registers;
  }

  /** The instruction pointer at the time of the event, whatever was assigned since. */
  get rip(): bigint {
    return getRegister(this.#received.state, 'rip');
  }

  /** False for UNHOOK and CMD_ERROR, which nobody waits for. */
  get needsAnswer(): boolean {
    return this.#received.definition.actions.length > 0;
  }

  get answered(): boolean {
    return this.#answered;
  }

  /**
   * Lets the vCPU go on. Without arguments, as if the event had not been intercepted: `continue`, for CR and MSR
   * with the value that the guest wanted.
   *
   * @returns false when the event was answered before, needs no answer, or the connection is gone.
   * @throws NotInDialectError when the event does not have the action; it is still to be answered then.
   */
  reply(action?: ActionOf<N>, details?: AnswerDetails<N>): boolean {
    if (this.#answered || !this.needsAnswer) return false;
    const message = encodeEventReply(
      this.vcpu.connection.dialect,
      this.#received,
      action ?? this.otherwise,
      this.#replyData(details as AllDetails | undefined),
    );
    this.#answered = true;
    const { connection, stop } = this.vcpu;
    if (details?.registers) {
      this.vcpu.postRegisters(details.registers, (error) => connection.report(error as Error));
    }
    return stop.answer(() => connection.write(message));
  }

  #replyData(details: AllDetails | undefined): EventReplyData {
    if (this.name === 'CR' || this.name === 'MSR') {
      return { new_val: details?.newValue ?? (this.data as EventData['CR']).new_value };
    }
    if (details?.substitute === undefined && !details?.repComplete) return NO_DATA;
    const { gva, bytes } = details.substitute ?? NO_SUBSTITUTE;
    return {
      ctx_addr: gva,
      ctx_size: bytes.length,
      ctx_data: bytes,
      rep_complete: details.repComplete ? 1 : 0,
    };
  }
}

type AllDetails = AnswerDetails<'CR'> & AnswerDetails<'PF'>;

const NO_DATA: EventReplyData = {};
const NO_SUBSTITUTE = { gva: 0n, bytes: new Uint8Array(0) };

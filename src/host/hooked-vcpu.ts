import { STATE_SIZE } from '../abi/state.ts';
import { type Awaitable, attempt, isPending, then } from '../awaitable.ts';
import { messageOf } from '../error.ts';
import type { Answer, Exception, InterceptedCr, ProbeAnswer, Stop, Vcpu } from '../machine/index.ts';
import { CONTINUE } from '../machine/index.ts';
import {
  ACTION,
  type Action,
  allocate,
  decodeEventReplyData,
  type EventData,
  type EventDefinition,
  type EventName,
  encodeEvent,
  eventSize,
  HEADER_SIZE,
  ProtocolError,
  type ReceivedEventReply,
  stateOffset,
} from '../wire/index.ts';
import type { HookContext, VcpuContext } from './context.ts';
import { type EventOutcome, INVALID, LOST } from './event-outcome.ts';
import { routeOf } from './stop-routes.ts';

/** Jobs that a vCPU may have waiting; as many messages would take half a gigabyte of kernel memory. */
const MAX_JOBS = 65536;
const ACTIONS = Object.entries(ACTION).reduce<Action[]>((list, [name, code]) => {
  list[code] = name as Action;
  return list;
}, []);

/** What keeps a vCPU outside the guest while a probe is handled, in the place of an event. */
interface Visit {
  readonly name: 'PROBE';
}

/** A piece of work that runs while the vCPU is outside the guest. It reports its own errors. */
export type Job = () => Awaitable<void>;

/** What a vCPU needs of its hook. */
export interface VcpuHook extends HookContext {
  /** No message is taken or sent any more. */
  readonly ended: boolean;
  /** Takes a reference; false when the hook is done. */
  get(): boolean;
  put(): void;
  /** The sequence number of the next event. */
  nextSeq(): number;
  send(message: Uint8Array): void;
}

/**
 * What the host side keeps for one vCPU while its VM is hooked: the job queue, the pause requests, what
 * is enabled, and the event that waits for its reply.
 */
export class HookedVcpu implements VcpuContext {
  readonly vcpu: Vcpu;
  readonly hook: VcpuHook;
  readonly events = new Set<EventName>();
  readonly crs = new Set<InterceptedCr>();
  readonly msrs = new Set<number>();
  singlestep = false;
  injecting = false;
  heldException: Exception | undefined;
  pauseRequests = 0;
  /** A CREATE_VCPU event is still to be sent (dialect v7). */
  announce = false;

  readonly #jobs: Job[] = [];
  #running = false;
  #open: EventDefinition | Visit | undefined;
  #openSince = 0;
  #seq = 0;
  #outcome: EventOutcome | undefined;
  #settle: ((outcome: EventOutcome) => void) | undefined;
  #delayedRegisters: Uint8Array | undefined;

  constructor(hook: VcpuHook, vcpu: Vcpu) {
    this.hook = hook;
    this.vcpu = vcpu;
  }

  get index(): number {
    return this.vcpu.index;
  }

  get waiting(): boolean {
    return this.#open !== undefined;
  }

  /** When the open event was sent, in ms of performance.now(); undefined for PAUSE, which the tool asked for. */
  get openSince(): number | undefined {
    return this.#open && this.#open.name !== 'PAUSE' ? this.#openSince : undefined;
  }

  /** Queues a job: it runs now if the vCPU waits for an event reply, else when it is outside the guest. */
  enqueue(job: Job): void {
    if (this.#jobs.length >= MAX_JOBS) {
      throw new ProtocolError(`vCPU ${this.index} has ${MAX_JOBS} jobs waiting`);
    }
    this.#jobs.push(job);
    if (!this.waiting) {
      this.#request();
    } else if (!this.#running) {
      void this.#drain();
    }
  }

  /** Runs jobs until there are none, or until one of them (the event reply) lets the vCPU go on. */
  #drain(event = this.#open): Awaitable<void> {
    this.#running = true;
    while (this.#open === event) {
      const job = this.#jobs.shift();
      if (!job) break;
      const done = job();
      if (isPending(done)) return done.then(() => this.#drain(event));
    }
    this.#running = false;
    if (this.#jobs.length > 0 && !this.waiting) this.#request();
  }

  #request(): void {
    void this.hook.guarded(() => this.vcpu.request());
  }

  /** The machine's answer to `Vcpu.request`: jobs first, then one event a pause request. */
  serve(): Awaitable<'crash' | undefined> {
    if (!this.hook.get()) return undefined;
    return this.#referenced(() => this.#serve(), undefined);
  }

  /** Drops the reference that the caller took when `run` is done; a driver's failure becomes `otherwise`. */
  #referenced<T>(run: () => Awaitable<T>, otherwise: T): Awaitable<T> {
    const result = attempt(run, (error) => {
      this.hook.log.errorOnce(`vCPU ${this.index}: ${messageOf(error)}`);
      return otherwise;
    });
    return then(result, (value) => {
      this.hook.put();
      return value;
    });
  }

  #serve(): Awaitable<'crash' | undefined> {
    return then(this.#drain(), () => {
      if (this.announce) {
        this.announce = false;
        return then(this.report('CREATE_VCPU', {}), (outcome) => this.#crashOr(outcome));
      }
      if (this.pauseRequests === 0) return undefined;
      this.pauseRequests--;
      return then(this.report('PAUSE', {}), (outcome) => this.#crashOr(outcome));
    });
  }

  #crashOr(outcome: EventOutcome): Awaitable<'crash' | undefined> {
    if (outcome.action !== 'crash') return this.#serve();
    return this.hook.rules.crash === 'shutdown' ? 'crash' : then(this.hook.kill(), () => this.#serve());
  }

  /** A trap fired: tells the tool if it wants to know, and answers for it. */
  stop(stop: Stop): Awaitable<Answer> {
    const route = routeOf(stop);
    if (!route.wanted(this, stop) || !this.hook.get()) return CONTINUE;
    return this.#referenced(
      () =>
        then(this.report(route.event, route.data(stop)), (outcome) => route.answer(outcome, this.hook, stop)),
      CONTINUE,
    );
  }

  /**
   * A probe was hit: calls `visit` with the state, as an event has it, and runs jobs until its answer is there. The
   * loss of the tool ends it, too.
   */
  visit(visit: (state: Uint8Array) => Awaitable<ProbeAnswer>): Awaitable<EventOutcome['action']> {
    if (this.hook.ended || !this.hook.get()) return 'lost';
    const state = new Uint8Array(STATE_SIZE);
    const outcome = () =>
      then(this.vcpu.readState(state), () => (this.hook.ended ? LOST : this.#visit(() => visit(state))));
    return then(this.#referenced(outcome, LOST), ({ action }) => action);
  }

  #visit(visit: () => Awaitable<ProbeAnswer>): Awaitable<EventOutcome> {
    const open: Visit = { name: 'PROBE' };
    const end = ({ registers, retry }: ProbeAnswer): void => {
      if (this.#open !== open) return;
      if (registers) this.#delayedRegisters = registers;
      this.#finish({ action: retry ? 'retry' : 'continue', data: {} });
    };
    this.#open = open;
    this.#openSince = performance.now();
    this.#outcome = undefined;
    const answer = attempt(visit, (error) => {
      this.hook.log.errorOnce(`vCPU ${this.index}: ${messageOf(error)}`);
      return {};
    });
    // What was asked before the answer is carried out before it.
    void then(answer, (answered) => {
      if (this.#running) this.#jobs.push(() => end(answered));
      else end(answered);
    });
    return this.#outcomeOf();
  }

  /** Sends an event and waits for the tool's answer, running jobs meanwhile. */
  report<N extends EventName>(name: N, data: EventData[N]): Awaitable<EventOutcome> {
    const { dialect } = this.hook;
    const definition = dialect.event(name);
    if (!definition || this.hook.ended) return LOST;
    const message = allocate(HEADER_SIZE + eventSize(dialect, definition));
    const at = stateOffset(dialect);
    return then(this.vcpu.readState(message.subarray(at, at + STATE_SIZE)), () => {
      if (this.hook.ended) return LOST;
      this.#seq = this.hook.nextSeq();
      encodeEvent(dialect, definition, message, this.#seq, this.index, data);
      return this.#await(definition, message);
    });
  }

  #await(definition: EventDefinition, message: Uint8Array): Awaitable<EventOutcome> {
    this.#open = definition;
    this.#openSince = performance.now();
    this.#outcome = undefined;
    this.hook.send(message);
    return this.#outcomeOf();
  }

  /** The outcome of what is open. */
  #outcomeOf(): Awaitable<EventOutcome> {
    if (!this.#outcome && !this.#running && this.#jobs.length > 0) void this.#drain();
    if (this.#outcome) return this.#close(this.#outcome);
    return new Promise<EventOutcome>((resolve) => {
      this.#settle = resolve;
    }).then((outcome) => this.#close(outcome));
  }

  #close(outcome: EventOutcome): Awaitable<EventOutcome> {
    this.#outcome = undefined;
    this.#settle = undefined;
    const registers = this.#delayedRegisters;
    this.#delayedRegisters = undefined;
    if (!registers || outcome === LOST) return outcome;
    return then(this.vcpu.writeRegisters(registers), () => outcome);
  }

  #finish(outcome: EventOutcome): void {
    this.#open = undefined;
    this.#outcome = outcome;
    this.#settle?.(outcome);
  }

  delayRegisters(regs: Uint8Array): void {
    this.#delayedRegisters = regs;
  }

  /**
   * An event reply for this vCPU (kvmi.rst, "Event replies"). It takes effect after the jobs before it.
   *
   * @throws ProtocolError for everything that closes the connection.
   */
  reply(seq: number, head: ReceivedEventReply, payload: Uint8Array): void {
    const definition = this.#open;
    if (!definition || definition.name === 'PROBE') {
      throw new ProtocolError(`vCPU ${this.index} waits for no event reply`);
    }
    if (!this.#running) {
      this.#accept(definition, seq, head, payload);
      return;
    }
    const copy = payload.slice();
    this.#jobs.push(() => this.hook.guarded(() => this.#accept(definition, seq, head, copy)));
  }

  #accept(definition: EventDefinition, seq: number, head: ReceivedEventReply, payload: Uint8Array): void {
    if (seq !== this.#seq) {
      throw new ProtocolError(`event reply has seq ${seq}; vCPU ${this.index} waits for ${this.#seq}`);
    }
    const decoded = decodeEventReplyData(definition, payload);
    if (head.padding || !decoded || decoded.padding || decoded.data.singlestep) {
      throw new ProtocolError(`the reply to ${definition.name} is too long or its padding is not zero`);
    }
    if ((decoded.data.ctx_size ?? 0) > 256) {
      throw new ProtocolError(
        `the reply to ${definition.name} has ${decoded.data.ctx_size} bytes of context`,
      );
    }
    const action = ACTIONS[head.action];
    if (action === undefined || !definition.actions.includes(action)) {
      this.#finish(INVALID);
      throw new ProtocolError(
        `${definition.name} was answered with action ${head.action}, which it does not have`,
      );
    }
    this.#finish({ action, data: decoded.data });
  }

  /** The connection is lost: nothing is queued, paused or waited for any more. */
  release(): Awaitable<void> {
    this.#jobs.length = 0;
    this.pauseRequests = 0;
    this.heldException = undefined;
    if (this.#open) this.#finish(LOST);
    if (!this.singlestep) return;
    this.singlestep = false;
    return this.hook.machine.disarm({ kind: 'singlestep', vcpu: this.vcpu });
  }
}

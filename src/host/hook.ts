import { type Awaitable, attempt, forEachThen } from '../awaitable.ts';
import { messageOf } from '../error.ts';
import type { Machine, Vcpu } from '../machine/index.ts';
import type { Channel } from '../transport/index.ts';
import {
  type Dialect,
  type EventData,
  type EventName,
  encodeEvent,
  HEADER_SIZE,
  MAX_EVENT_MESSAGE,
} from '../wire/index.ts';
import { type DispatchHook, dispatch } from './dispatch.ts';
import { HookedVcpu, type VcpuHook } from './hooked-vcpu.ts';
import type { HookLog } from './log.ts';
import { Permissions } from './permissions.ts';
import { Receiver, type ReceiverHook } from './receiver.ts';
import { RULES, type Rules } from './rules.ts';

/** The largest event counter: the sequence number on the wire has 32 bits. */
const SEQ_MODULUS = 2 ** 32;

/**
 * One introspection object: what exists from HOOK to UNHOOK.
 *
 * It is referenced by the receiver for its life and by each vCPU that sends an event or runs jobs; it is
 * done when the last reference is dropped.
 */
export class Hook implements VcpuHook, DispatchHook, ReceiverHook {
  readonly machine: Machine;
  readonly channel: Channel;
  readonly dialect: Dialect;
  readonly rules: Rules;
  readonly permissions: Permissions;
  readonly log: HookLog;
  readonly vcpus: HookedVcpu[] = [];
  readonly vmEvents = new Set<EventName>();
  readonly responses = { enabled: true, errorsAsEvents: false };
  cleanup: boolean;
  heardAt = performance.now();
  /** Resolves when the receiver has ended: the tool hung up, broke the protocol, or was unhooked. */
  readonly disconnected: Promise<void>;
  /** Resolves when the last reference is gone. */
  readonly completion: Promise<void>;

  #references = 1;
  #seq = 0;
  #ended = false;
  #complete!: () => void;
  #disconnect!: () => void;

  constructor(machine: Machine, channel: Channel, dialect: Dialect, log: HookLog) {
    this.machine = machine;
    this.channel = channel;
    this.dialect = dialect;
    this.rules = RULES[dialect.name];
    this.permissions = new Permissions(dialect);
    this.log = log;
    this.cleanup = dialect.name === 'v12';
    this.completion = new Promise((resolve) => {
      this.#complete = resolve;
    });
    this.disconnected = new Promise((resolve) => {
      this.#disconnect = resolve;
    });
    for (const vcpu of machine.vcpus) this.vcpus.push(new HookedVcpu(this, vcpu));
  }

  /** Starts the receiver. */
  start(): void {
    if (this.rules.logsHook) this.log.info('Hooking VM');
    this.channel.open(new Receiver(this, (id, seq, payload) => dispatch(this, id, seq, payload)));
  }

  /** The receiver has ended: no message is taken or sent any more. */
  get ended(): boolean {
    return this.#ended;
  }

  get(): boolean {
    if (this.#references === 0) return false;
    this.#references++;
    return true;
  }

  put(): void {
    if (--this.#references === 0) this.#complete();
  }

  nextSeq(): number {
    this.#seq = (this.#seq + 1) % SEQ_MODULUS;
    return this.#seq;
  }

  send(message: Uint8Array): void {
    this.channel.write(message);
  }

  /** Sends an event about the VM; false when that is not possible. */
  sendVmEvent<N extends EventName>(name: N, data: EventData[N]): boolean {
    const definition = this.dialect.event(name);
    if (!definition || this.#ended) return false;
    const message = new Uint8Array(MAX_EVENT_MESSAGE);
    const length = encodeEvent(this.dialect, definition, message, this.nextSeq(), 0, data);
    this.send(message.subarray(0, Math.max(length, HEADER_SIZE)));
    return true;
  }

  /** A vCPU that was created after the hook. Done when its event is sure to come before it runs. */
  vcpuCreated(vcpu: Vcpu): Awaitable<void> {
    const hooked = this.addVcpu(vcpu);
    if (!this.vmEvents.has('CREATE_VCPU')) return;
    hooked.announce = true;
    return this.guarded(() => vcpu.request());
  }

  addVcpu(vcpu: Vcpu): HookedVcpu {
    const hooked = new HookedVcpu(this, vcpu);
    this.vcpus[vcpu.index] = hooked;
    return hooked;
  }

  guarded(run: () => Awaitable<void>): Awaitable<void> {
    return attempt(run, (error) => this.fail(error));
  }

  fail(error: unknown): void {
    if (!this.#ended) this.log.error(`${messageOf(error)}; the connection to ${this.channel.peer} is closed`);
    this.end();
  }

  /**
   * The receiver's end: shuts the socket down in both directions, releases every vCPU and drops the
   * receiver's reference. The VM stays hooked.
   */
  end(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.channel.shutdown();
    if (this.rules.logsHook) this.log.info('Unhooking VM');
    const released = forEachThen(this.vcpus, (vcpu) =>
      attempt(
        () => vcpu.release(),
        (error) => this.log.error(`releasing vCPU ${vcpu.index}: ${messageOf(error)}`),
      ),
    );
    void Promise.resolve(released).then(() => {
      this.put();
      this.#disconnect();
    });
  }

  kill(): Awaitable<void> {
    this.log.warn('the tool asked for the VM to be ended');
    return this.machine.kill?.();
  }

  /**
   * How long the tool has been silent while it owes an answer to an event (PAUSE, which it asked for,
   * excepted), in milliseconds; 0 when it owes none.
   */
  stalledFor(now = performance.now()): number {
    const since = this.vcpus.map((vcpu) => vcpu.openSince).filter((open) => open !== undefined);
    return since.length === 0 ? 0 : now - Math.max(this.heardAt, Math.min(...since));
  }
}

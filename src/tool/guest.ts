import { isPending } from '../awaitable.ts';
import { KvmiError, messageOf } from '../error.ts';
import type { ProbePort } from '../machine/index.ts';
import {
  type CommandName,
  type DialectName,
  type EventName,
  type HandshakeHello,
  type MemoryMapEntry,
  NotInDialectError,
  ProtocolError,
  type ReceivedEvent,
  type Replies,
  type Requests as RequestBodies,
  type VersionReply,
} from '../wire/index.ts';
import { Breakpoints } from './breakpoints.ts';
import type { Connection } from './connection.ts';
import { Dispatcher } from './dispatcher.ts';
import { type AnyEvent, type EventHandler, GuestEvent } from './event.ts';
import { holdAll } from './hold.ts';
import { GuestMemory } from './memory.ts';
import { type PageAccess, PageAccessTable } from './page-access.ts';
import { Probes, type SymbolResolver } from './probes.ts';
import { type StepHandler, singlestep } from './singlestep.ts';
import { Switch } from './switch.ts';
import { GuestVcpu, type Paused } from './vcpu.ts';
import { GuestViews } from './views.ts';

/** What a guest gets from who connects it. */
export interface GuestParts {
  /** The machine's own probes, where the host side is in this process. */
  readonly probes?: ProbePort | undefined;
  readonly symbols?: SymbolResolver | undefined;
}

const USER = 'user';
/** KVM's own limit on x86. */
const MAX_VCPUS = 4096;

/**
 * A virtual machine that is hooked to this tool.
 *
 * ```ts
 * guest.on('CR', (event) => {
 *   console.log(`vCPU ${event.vcpu.index}: cr${event.data.cr} = ${event.data.new_value}`);
 * });
 * await guest.enable('CR');
 * await guest.vcpus[0].controlCr(3, true);
 * // …
 * await guest.detach();
 * ```
 *
 * Commands reject with a ReplyError when the host side refuses, a NotInDialectError when the dialect has no such
 * command, and a KvmiError with code E_TIMEOUT or E_CLOSED. What is issued in one turn of the event loop goes
 * out together.
 */
export class Guest {
  /** The VMM's name of the VM; may be empty. */
  readonly name: string;
  /** 16 bytes in text order. */
  readonly uuid: Uint8Array;
  /** When the VM started, in milliseconds of its host's CLOCK_MONOTONIC. */
  readonly startTime: number;
  readonly memoryMap: readonly MemoryMapEntry[] | undefined;
  /** What the host side said about itself (GET_VERSION). */
  readonly features: VersionReply;
  readonly memory: GuestMemory;
  /** Software breakpoints: int3 in guest memory. */
  readonly breakpoints: Breakpoints;
  /** Code that is called each time the guest comes to an instruction, by the machine's own means where it has some. */
  readonly probes: Probes;
  readonly views: GuestViews;
  /** @internal */
  readonly connection: Connection;
  /** @internal */
  readonly dispatcher: Dispatcher;
  readonly #vcpus: GuestVcpu[] = [];
  readonly #pageAccess: PageAccessTable;
  readonly #vmEvents = new Map<EventName, Switch>();
  #detached: Promise<void> | undefined;

  /** Use `connectGuest` or `listen`. @internal */
  constructor(
    connection: Connection,
    hello: HandshakeHello,
    features: VersionReply,
    vcpuCount: number,
    parts: GuestParts = {},
  ) {
    this.connection = connection;
    this.name = hello.name;
    this.uuid = hello.uuid;
    this.startTime = hello.startTime;
    this.memoryMap = hello.memoryMap;
    this.features = features;
    this.memory = new GuestMemory(connection.requests);
    this.dispatcher = new Dispatcher((error) => this.report(error));
    this.breakpoints = new Breakpoints(this);
    this.probes = new Probes(this, parts.probes, parts.symbols);
    this.views = new GuestViews(connection);
    this.#pageAccess = new PageAccessTable(connection.requests);
    this.#growTo(vcpuCount);
    connection.onEvent = (event) => this.#take(event);
    connection.onEnd(() => this.dispatcher.end());
  }

  get dialect(): DialectName {
    return this.connection.dialect.name;
  }

  /** By index (creation order). Grows when a vCPU is created. */
  get vcpus(): readonly GuestVcpu[] {
    return this.#vcpus;
  }

  /** Resolves when the connection is over; with the error that ended it, if it was one. */
  get closed(): Promise<Error | undefined> {
    return this.connection.closed;
  }

  #growTo(count: number): void {
    if (count > MAX_VCPUS) {
      throw new ProtocolError(
        `the host side has a vCPU ${count - 1}; more than ${MAX_VCPUS} are not believed`,
      );
    }
    while (this.#vcpus.length < count) {
      this.#vcpus.push(new GuestVcpu(this.connection, this.memory, this.#vcpus.length));
    }
  }

  /** A vCPU that the host side names; it may be new. @internal */
  vcpuAt(index: number): GuestVcpu {
    if (index >= this.#vcpus.length) this.#growTo(index + 1);
    return this.#vcpus[index]!;
  }

  #take(received: ReceivedEvent): void {
    const vcpu = this.vcpuAt(received.vcpu);
    const event = new GuestEvent(vcpu, received);
    if (event.needsAnswer && vcpu.stop.opened(event)) return;
    if (event.name === 'CREATE_VCPU') this.breakpoints.vcpuCreated(vcpu);
    const done = this.dispatcher.dispatch(event);
    if (event.name !== 'UNHOOK') return;
    if (isPending(done)) void done.then(() => this.detach());
    else void this.detach();
  }

  /** Any command of the dialect, by the names of the newest series. */
  async command<N extends CommandName>(name: N, body: RequestBodies[N], vcpu = 0): Promise<Replies[N]> {
    return this.connection.requests.send(name, body, vcpu);
  }

  /**
   * Sets the handler of a kind of events; the result removes it. The events have to be turned on separately.
   *
   * A handler that returns its answer (rather than a promise) is the fastest: the answer is sent at once. An exception
   * is reported to `onError`, and the guest goes on. After the handler of UNHOOK the guest is detached. (TypeScript
   * takes a bare `return 'retry'` in an async function for any string: write `return { action: 'retry' }` there.)
   */
  on<N extends EventName>(name: N, handler: EventHandler<N>): () => void {
    return this.dispatcher.on(name, handler);
  }

  /**
   * The events that have no handler, one after another; each needs `event.reply()`. Leaving the loop answers those that
   * are still open.
   */
  events(): AsyncIterableIterator<AnyEvent> {
    return this.dispatcher.events(() =>
      this.#vcpus.flatMap(({ stop: { open } }) => (open instanceof GuestEvent ? [open] : [])),
    );
  }

  /** Turns a kind of events on: for the VM (UNHOOK, CREATE_VCPU), or on every vCPU. */
  enable(name: EventName): Promise<void> {
    return this.#control(name, true);
  }

  disable(name: EventName): Promise<void> {
    return this.#control(name, false);
  }

  async #control(name: EventName, on: boolean): Promise<void> {
    const event = this.connection.dialect.event(name);
    if (!event) throw new NotInDialectError(name, this.dialect);
    if (event.controlledBy === 'vm') await this.switchVmEvent(name, on, USER);
    else await Promise.all(this.#vcpus.map((vcpu) => vcpu.controlEvents(name, on)));
  }

  /** @internal */
  async switchVmEvent(name: EventName, on: boolean, who: string): Promise<void> {
    const event = this.connection.dialect.event(name);
    if (!event) throw new NotInDialectError(name, this.dialect);
    let found = this.#vmEvents.get(name);
    if (!found) {
      found = new Switch((enable) =>
        this.command('VM_CONTROL_EVENTS', { event_id: event.id, enable: Number(enable) }),
      );
      this.#vmEvents.set(name, found);
    }
    await found.set(who, on);
  }

  /**
   * Stops every vCPU. Resolves when each of them is outside the guest; they stay there until the result's `resume`.
   * Pauses may overlap: the guest runs again after the last one.
   */
  async pause(): Promise<Paused> {
    return { resume: await holdAll(this.#vcpus) };
  }

  /**
   * Restricts what the guest may do with pages; a violation is a PF event, where those are turned on. Not all or
   * nothing: every entry is tried, the first error is reported.
   */
  setPageAccess(entries: readonly PageAccess[], view = 0): Promise<void> {
    return this.#pageAccess.set(entries, view);
  }

  /** The first frame number after the guest's memory. Dialects v7 and v9. */
  async maxGfn(): Promise<number> {
    return (await this.command('VM_GET_MAX_GFN', {})).gfn;
  }

  /** Whether unhooking undoes what was intercepted (dialects v9, where it does not by default, and v12, where it does). */
  async cleanup(on: boolean): Promise<void> {
    await this.command('VM_CONTROL_CLEANUP', { enable: Number(on) });
  }

  /**
   * Single-steps a vCPU: calls `each` after every instruction, until it gives false.
   *
   * @returns when it did, or the connection is over.
   */
  singlestep(vcpu: GuestVcpu, each: StepHandler): Promise<void> {
    return singlestep(this, vcpu, each);
  }

  /**
   * Leaves the guest as if it had never been hooked: takes back probes, breakpoints, page access, events and single-stepping,
   * answers what is open, and hangs up. What cannot be taken back is reported. Idempotent; never rejects.
   */
  detach(): Promise<void> {
    this.#detached ??= this.#detach();
    return this.#detached;
  }

  async #detach(): Promise<void> {
    if (!this.connection.ended) {
      await this.probes.removeAll();
      await this.breakpoints.removeAll();
      await Promise.all([
        ...this.#vcpus.map((vcpu) => vcpu.disarm()),
        this.#tryTo('page access', this.#pageAccess.lift()),
        ...[...this.#vmEvents].map(([name, each]) => this.#tryTo(`event ${name}`, each.off())),
      ]);
      for (const vcpu of this.#vcpus) vcpu.stop.releaseAll();
      this.connection.shutdown();
    }
    await this.closed;
  }

  #tryTo(what: string, undone: Promise<void>): Promise<void> {
    return undone.catch((cause: unknown) => {
      this.report(new KvmiError('E_DETACH', `${what} stays: ${messageOf(cause)}`, { cause }));
    });
  }

  /** @internal */
  report(error: Error): void {
    this.connection.report(error);
  }
}

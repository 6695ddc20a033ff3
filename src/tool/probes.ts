import { KVM_ERRNO } from '../abi/errno.ts';
import { type Awaitable, attempt, forEachThen, then } from '../awaitable.ts';
import { KvmiError, messageOf } from '../error.ts';
import type { Gva, MachineProbeKind, ProbeAnswer, ProbePort } from '../machine/index.ts';
import { ReplyError } from '../wire/index.ts';
import type { GuestEvent } from './event.ts';
import type { Guest } from './guest.ts';
import { Lock } from './lock.ts';
import { type Registers, registersOf } from './registers.ts';
import type { OpenStop } from './stop.ts';
import type { GuestVcpu } from './vcpu.ts';

/** By what a probe sees the guest: the machine's own means, or an int3 in guest memory. */
export type ProbeKind = MachineProbeKind | 'int3';

/** Gives the address of a symbol of the guest. */
export type SymbolResolver = (name: string) => Awaitable<Gva>;

/**
 * Called with the vCPU in front of the instruction, on every hit. It may read and change the guest; registers that
 * are assigned in `hit.registers` are set. When it is done the instruction is carried out, unless rip was changed.
 */
export type ProbeHandler = (hit: ProbeHit) => Awaitable<void>;

export interface ProbeOptions {
  /**
   * Whether an int3 in guest memory may be the probe where the machine has no means of its own, or they are used up.
   * Default true.
   */
  readonly int3?: boolean;
  /** Whose page tables translate the address for an int3; vCPU 0 when not given. */
  readonly vcpu?: GuestVcpu;
}

/** A vCPU that came to the instruction of a probe. It is outside the guest until the handler is done. */
export class ProbeHit {
  readonly vcpu: GuestVcpu;
  /** The registers in front of the instruction, with nine MSRs as in an event. What is assigned is set. */
  readonly registers: Registers;
  readonly probe: Probe;
  readonly #retry: () => void;

  /** @internal */
  constructor(vcpu: GuestVcpu, registers: Registers, probe: Probe, retry: () => void) {
    this.vcpu = vcpu;
    this.registers = registers;
    this.probe = probe;
    this.#retry = retry;
  }

  /** The linear address of the instruction. */
  get address(): Gva {
    return this.probe.address;
  }

  /** Lets nothing happen now: the vCPU comes to the instruction once more, and hits again what is still there. */
  retry(): void {
    this.#retry();
  }
}

/** A probe that was set. */
export class Probe {
  /** The linear address of the instruction. */
  readonly address: Gva;
  /** `int3`: the guest's memory is changed. */
  readonly kind: ProbeKind;
  /** How often the handler was called. */
  hits = 0;
  /** @internal */
  readonly handler: ProbeHandler;
  readonly #remove: () => Promise<void>;

  /** @internal */
  constructor(site: ProbeSite, handler: ProbeHandler, remove: (self: Probe) => Promise<void>) {
    this.address = site.address;
    this.kind = site.kind;
    this.handler = handler;
    let removed: Promise<void> | undefined;
    this.#remove = () => {
      removed ??= remove(this);
      return removed;
    };
  }

  /**
   * Takes it out; the handler is not called any more. It may be called at any time, also by the handler.
   *
   * @throws KvmiError with code E_CLOSED when the VM or the connection ended before, and what the machine throws when
   * it cannot take the probe back.
   */
  remove(): Promise<void> {
    return this.#remove();
  }
}

/** An instruction with probes: they share what is armed in the machine. */
interface ProbeSite {
  readonly address: Gva;
  readonly kind: ProbeKind;
  readonly probes: readonly Probe[];
}

/** A {@link ProbeSite} as it is kept here. */
class Site implements ProbeSite {
  readonly address: Gva;
  kind: ProbeKind = 'int3';
  probes: readonly Probe[] = [];
  disarm: () => Awaitable<void> = () => {};

  constructor(address: Gva) {
    this.address = address;
  }
}

/**
 * Code that is called each time the guest comes to an instruction.
 *
 * A probe is set by the machine's own means where the tool and the host side are in one process (`introspect`) and the
 * machine has some: breakpoints of QEMU's gdbstub, or the debug registers of the processor on stock KVM. They change
 * nothing in guest memory, and an address needs not be mapped yet. Elsewhere, and when they are used up, it is an int3
 * in guest memory, as `guest.breakpoints` sets it. `probe.kind` says which.
 *
 * ```ts
 * const probe = await guest.probes.at('do_sys_openat2', (hit) => {
 *   console.log(hit.vcpu.index, hit.registers.rsi);
 * });
 * // …
 * await probe.remove();
 * ```
 */
export class Probes {
  readonly #guest: Guest;
  readonly #port: ProbePort | undefined;
  readonly #symbols: SymbolResolver | undefined;
  readonly #sites = new Map<Gva, Site>();
  /** Around everything that sets or takes back. */
  readonly #lock = new Lock();

  /** @internal */
  constructor(guest: Guest, port: ProbePort | undefined, symbols: SymbolResolver | undefined) {
    this.#guest = guest;
    this.#port = port;
    this.#symbols = symbols;
  }

  /**
   * Sets a probe at a linear address, or at a symbol (`name`, `name+0x10`); any number may be set at the same one.
   *
   * @throws KvmiError with code E_SYMBOL when the symbol is not known, E_NOT_MAPPED when it is no address, E_NO_MEMORY when the machine's own means are
   * used up and E_UNSUPPORTED when it has none while an int3 is not allowed, what `guest.breakpoints.set` throws for an
   * int3, and what the machine throws.
   */
  async at(where: Gva | string, handler: ProbeHandler, options: ProbeOptions = {}): Promise<Probe> {
    const address = BigInt.asUintN(64, typeof where === 'string' ? await this.#resolve(where) : where);
    requireCanonical(address);
    return this.#lock.run(async () => {
      const site = this.#sites.get(address) ?? (await this.#arm(new Site(address), options));
      if (site.kind === 'int3' && options.int3 === false) throw int3Refused(address);
      const probe = new Probe(site, handler, (self) => this.#remove(site, self));
      site.probes = [...site.probes, probe];
      return probe;
    });
  }

  async #resolve(where: string): Promise<Gva> {
    const [, name = where, offset = '0'] = /^(.+?)(?:\+(0x[0-9a-f]+|\d+))?$/i.exec(where) ?? [];
    if (this.#symbols) return (await this.#symbols(name)) + BigInt(offset);
    throw new KvmiError('E_SYMBOL', `${where}: this guest was given nobody who knows symbols`, {
      hint: 'Give `symbols` to introspect or connectGuest, or pass an address.',
      data: { name },
    });
  }

  async #arm(site: Site, options: ProbeOptions): Promise<Site> {
    const exhausted = this.#port && (await this.#armOwn(site, this.#port));
    if (this.#port && !exhausted) return site;
    if (options.int3 === false) throw exhausted ?? int3Refused(site.address);
    await this.#armInt3(site, options.vcpu, exhausted);
    return site;
  }

  /** The error that says that the machine has no more. */
  async #armOwn(site: Site, port: ProbePort): Promise<KvmiError | undefined> {
    site.kind = port.kind;
    this.#sites.set(site.address, site);
    try {
      site.disarm = await port.set(site.address, (vcpu, state) => this.#visited(site, vcpu, state));
      return undefined;
    } catch (error) {
      this.#sites.delete(site.address);
      if (error instanceof KvmiError && error.code === 'E_NO_MEMORY') return error;
      throw error;
    }
  }

  async #armInt3(site: Site, vcpu: GuestVcpu | undefined, exhausted: KvmiError | undefined): Promise<void> {
    const { breakpoints } = this.#guest;
    site.kind = 'int3';
    this.#sites.set(site.address, site);
    try {
      const hit = (event: GuestEvent<'BREAKPOINT'>) => this.#trapped(site, event);
      const breakpoint = await breakpoints.set(site.address, hit, vcpu && { vcpu });
      site.disarm = () => breakpoint.remove();
    } catch (error) {
      this.#sites.delete(site.address);
      throw exhausted && isUnsupported(error) ? exhausted : error;
    }
  }

  #remove(site: Site, probe: Probe): Promise<void> {
    site.probes = site.probes.filter((other) => other !== probe);
    return this.#lock.run(async () => {
      if (site.probes.length > 0 || this.#sites.get(site.address) !== site) return;
      if (this.#guest.connection.ended) {
        throw new KvmiError(
          'E_CLOSED',
          `the connection ended before the probe at 0x${site.address.toString(16)} was removed`,
        );
      }
      this.#sites.delete(site.address);
      await site.disarm();
    });
  }

  /** Removes every probe. What cannot be removed is reported. @internal */
  async removeAll(): Promise<void> {
    const probes = [...this.#sites.values()].flatMap((site) => site.probes);
    await Promise.all(
      probes.map((probe) =>
        probe.remove().catch((cause: unknown) => {
          const message = `the probe at 0x${probe.address.toString(16)} stays: ${messageOf(cause)}`;
          this.#guest.report(new KvmiError('E_DETACH', message, { cause }));
        }),
      ),
    );
  }

  /** A hit by the machine's own means. */
  #visited(site: Site, index: number, state: Uint8Array): Awaitable<ProbeAnswer> {
    const vcpu = this.#guest.vcpuAt(index);
    const visit = new Visit(vcpu);
    const registers = registersOf(state, 'event');
    void then(this.#call(site, vcpu, registers), (retry) =>
      visit.end({ retry, registers: registers.changed ? registers.general : undefined }),
    );
    return visit.answer;
  }

  #trapped(site: Site, event: GuestEvent<'BREAKPOINT'>): Awaitable<void> {
    const { registers } = event;
    return then(this.#call(site, event.vcpu, registers), (retry) => {
      if (retry) event.reply('retry', registers.changed ? { registers } : undefined);
    });
  }

  /** Calls the handlers one after another. True when one of them wants the vCPU to come again. */
  #call(site: Site, vcpu: GuestVcpu, registers: Registers): Awaitable<boolean> {
    let retry = false;
    const again = (): void => {
      retry = true;
    };
    const done = forEachThen(site.probes, (probe) => {
      // Another one's handler may have removed it meanwhile.
      if (!site.probes.includes(probe)) return undefined;
      probe.hits++;
      return attempt(
        () => probe.handler(new ProbeHit(vcpu, registers, probe, again)),
        (error) => this.#failed(probe, error),
      );
    });
    return then(done, () => retry);
  }

  #failed(probe: Probe, cause: unknown): void {
    const message = `the handler of the probe at 0x${probe.address.toString(16)} failed: ${messageOf(cause)}`;
    this.#guest.report(new KvmiError('E_HANDLER', message, { cause }));
  }
}

/** A vCPU that is outside the guest because of a hit, for those who hold it. */
class Visit implements OpenStop {
  readonly name = 'PROBE';
  readonly #vcpu: GuestVcpu;
  #ended = false;
  #answer: ProbeAnswer | undefined;
  #answered: ((answer: ProbeAnswer) => void) | undefined;

  constructor(vcpu: GuestVcpu) {
    this.#vcpu = vcpu;
    vcpu.stop.opened(this);
  }

  /** The handlers are done: the vCPU goes on, unless somebody holds it. */
  end(answer: ProbeAnswer): boolean {
    if (this.#ended) return false;
    this.#ended = true;
    const send = (): void => {
      this.#answer = answer;
      this.#answered?.(answer);
    };
    const taken = this.#vcpu.stop.answer(send);
    if (!taken) send();
    return taken;
  }

  reply(): boolean {
    return this.end({});
  }

  get answer(): Awaitable<ProbeAnswer> {
    if (this.#answer) return this.#answer;
    return new Promise((resolve) => {
      this.#answered = resolve;
    });
  }
}

/** Linear addresses have 57 bits at most, extended with the highest of them. */
function requireCanonical(address: Gva): void {
  if (BigInt.asUintN(64, BigInt.asIntN(57, address)) === address) return;
  throw new KvmiError(
    'E_NOT_MAPPED',
    `0x${address.toString(16)} is no linear address: nothing can be there`,
    {
      data: { gva: address },
    },
  );
}

function int3Refused(address: Gva): KvmiError {
  return new KvmiError(
    'E_UNSUPPORTED',
    `the probe at 0x${address.toString(16)} would be an int3 in guest memory: the machine has no other means here`,
    { hint: 'Allow it with `int3: true`.', data: { address } },
  );
}

/** The machine has no breakpoints, or they are not permitted. */
function isUnsupported(error: unknown): boolean {
  if (!(error instanceof ReplyError)) return false;
  return error.errno === KVM_ERRNO.KVM_EOPNOTSUPP || error.errno === KVM_ERRNO.KVM_EPERM;
}

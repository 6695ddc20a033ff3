import { type Awaitable, attempt, forEachThen, isPending } from '../awaitable.ts';
import { KvmiError, messageOf } from '../error.ts';
import type { Gpa, Gva } from '../machine/index.ts';
import { Breakpoint, type BreakpointHandler } from './breakpoint.ts';
import { BreakpointSite, INT3 } from './breakpoint-site.ts';
import type { GuestEvent } from './event.ts';
import type { Guest } from './guest.ts';
import { Lock } from './lock.ts';
import { carryOut, stepOver } from './step-over.ts';
import type { GuestVcpu } from './vcpu.ts';

export interface BreakpointOptions {
  /** Whose page tables translate the address; vCPU 0 when not given. */
  readonly vcpu?: GuestVcpu;
}

/** Who turned events on, for {@link Switch}. */
const WHO = 'breakpoints';

/**
 * Software breakpoints: an int3 in guest memory, on every vCPU that comes there.
 *
 * A hit calls the handlers and then carries the replaced instruction out: on the register values when it is one of
 * those that functions start with, so that no vCPU can slip past meanwhile; otherwise by single-stepping it with
 * the other vCPUs stopped. The guest's own int3 instructions stay its own.
 *
 * ```ts
 * const breakpoint = await guest.breakpoints.set(0xffffffff81234560n, (event) => {
 *   console.log(event.vcpu.index, event.registers.rdi);
 * });
 * // …
 * await breakpoint.remove();
 * ```
 *
 * The byte is found by its guest-physical address: a breakpoint in shared code is hit by every process that runs it.
 * A guest that rewrites its own code at that very byte removes the breakpoint, which goes unnoticed. Reading guest
 * memory shows the int3.
 */
export class Breakpoints {
  readonly #guest: Guest;
  readonly #sites = new Map<Gpa, BreakpointSite>();
  /** Where there were breakpoints: a vCPU may have run into one just before it was removed. */
  readonly #former = new Set<Gpa>();
  /** Around everything that changes guest code. */
  readonly #lock = new Lock();

  constructor(guest: Guest) {
    this.#guest = guest;
    guest.dispatcher.claim('BREAKPOINT', (event) => this.#claim(event as GuestEvent<'BREAKPOINT'>));
  }

  /**
   * Sets a breakpoint at a guest-virtual address; any number may be set at the same one.
   *
   * @throws KvmiError with code E_NOT_MAPPED when the address has no translation, E_UNSUPPORTED when the instruction
   * there could not be carried out after a hit, and what the commands throw.
   */
  async set(gva: Gva, handler: BreakpointHandler, options: BreakpointOptions = {}): Promise<Breakpoint> {
    const address = BigInt.asUintN(64, gva);
    const vcpu = options.vcpu ?? this.#guest.vcpus[0];
    if (!vcpu)
      throw new KvmiError('E_UNSUPPORTED', 'a guest without vCPUs executes nothing that could be stopped');
    const gpa = await vcpu.translate(address);
    if (gpa === undefined) {
      throw new KvmiError('E_NOT_MAPPED', `0x${address.toString(16)} is not mapped on vCPU ${vcpu.index}`, {
        hint: 'Set the breakpoint while the address space that has the address is active on that vCPU.',
        data: { gva: address, vcpu: vcpu.index },
      });
    }
    const breakpoint = new Breakpoint(address, gpa, handler, (self) => this.#remove(self));
    await this.#lock.run(() => this.#add(breakpoint));
    return breakpoint;
  }

  async #add(breakpoint: Breakpoint): Promise<void> {
    const { gpa, gva } = breakpoint;
    const existing = this.#sites.get(gpa);
    if (existing?.armed) {
      existing.breakpoints.push(breakpoint);
      return;
    }
    const site = await BreakpointSite.at(this.#guest.memory, gpa, gva);
    this.#checkSteppable(site);
    // One that was lost comes back, over what is there now.
    site.breakpoints.push(...(existing?.breakpoints ?? []), breakpoint);
    if (this.#sites.size === 0) await this.#enable();
    this.#sites.set(gpa, site);
    let armed = false;
    try {
      armed = await site.arm();
    } finally {
      if (!armed) await this.#drop(site);
    }
    if (!armed)
      throw new KvmiError('E_NOT_BACKED', `0x${gva.toString(16)} cannot be written`, { data: { gva } });
  }

  #checkSteppable(site: BreakpointSite): void {
    if (this.#guest.features.singlestep || site.instruction || site.original === INT3) return;
    throw new KvmiError(
      'E_UNSUPPORTED',
      `the instruction at 0x${site.gva.toString(16)} cannot be carried out after a hit: the host side has no single-stepping`,
      {
        hint: 'Choose an instruction nearby, such as the first one of the function.',
        data: { gva: site.gva },
      },
    );
  }

  async #enable(): Promise<void> {
    // A VM that is about to leave has to get its code back; a new vCPU has to report breakpoints from the start.
    for (const name of ['UNHOOK', 'CREATE_VCPU'] as const) {
      this.#guest.switchVmEvent(name, true, WHO).catch(() => {});
    }
    const enabling = this.#guest.vcpus.map((vcpu) => vcpu.switchEvents('BREAKPOINT', true, WHO));
    const results = await Promise.allSettled(enabling);
    for (const result of results) {
      if (result.status === 'fulfilled') continue;
      await this.#disable();
      throw result.reason;
    }
  }

  /** A vCPU that did not run before is about to start. @internal */
  vcpuCreated(vcpu: GuestVcpu): void {
    if (this.#sites.size === 0) return;
    vcpu.switchEvents('BREAKPOINT', true, WHO).catch((error: Error) => this.#guest.report(error));
  }

  async #disable(): Promise<void> {
    await Promise.allSettled([
      ...this.#guest.vcpus.map((vcpu) => vcpu.switchEvents('BREAKPOINT', false, WHO)),
      this.#guest.switchVmEvent('UNHOOK', false, WHO),
      this.#guest.switchVmEvent('CREATE_VCPU', false, WHO),
    ]);
  }

  async #remove(breakpoint: Breakpoint): Promise<void> {
    await this.#lock.run(async () => {
      const site = this.#sites.get(breakpoint.gpa);
      const at = site?.breakpoints.indexOf(breakpoint) ?? -1;
      if (!site || at < 0) return;
      site.breakpoints.splice(at, 1);
      if (site.breakpoints.length > 0) return;
      await site.disarm();
      await this.#drop(site);
    });
  }

  /** Removes every breakpoint. */
  async removeAll(): Promise<void> {
    await this.#lock.run(async () => {
      for (const site of [...this.#sites.values()]) {
        site.breakpoints.length = 0;
        try {
          await site.disarm();
        } catch (error) {
          this.#guest.report(
            new KvmiError('E_DETACH', `the int3 at 0x${site.gva.toString(16)} stays: ${messageOf(error)}`, {
              cause: error,
            }),
          );
        }
        await this.#drop(site);
      }
    });
  }

  /** The byte is the guest's again. */
  async #drop(site: BreakpointSite): Promise<void> {
    this.#former.add(site.gpa);
    this.#sites.delete(site.gpa);
    if (this.#sites.size > 0) return;
    // Once each vCPU was stopped, none of them has a hit on its way that the guest would get instead.
    await this.#guest.pause().then(
      (paused) => paused.resume(),
      (error: Error) => this.#guest.report(error),
    );
    await this.#disable();
  }

  #claim(event: GuestEvent<'BREAKPOINT'>): boolean {
    const site = this.#siteOf(event);
    if (!site && !this.#former.has(event.data.gpa)) return false;
    // Whatever happens, the guest does not get a breakpoint exception that is not its own.
    event.otherwise = 'retry';
    if (site) this.#hit(site, event);
    else void this.#formerHit(event);
    return true;
  }

  #siteOf(event: GuestEvent<'BREAKPOINT'>): BreakpointSite | undefined {
    const site = this.#sites.get(event.data.gpa);
    if (site || event.data.gpa < 2 ** 64) return site;
    // The host side could not tell where the instruction is.
    const { rip } = event.registers;
    for (const each of this.#sites.values()) if (each.gva === rip) return each;
    return undefined;
  }

  /** A late hit is tried again, on the original code; an int3 of the guest's own is the guest's. */
  async #formerHit(event: GuestEvent<'BREAKPOINT'>): Promise<void> {
    const now = new Uint8Array(1);
    const readable = await attempt(
      () => this.#guest.memory.read(event.data.gpa, now),
      () => false,
    );
    const theirs = readable && now[0] === INT3 && !this.#sites.has(event.data.gpa);
    if (!theirs) {
      event.reply();
      return;
    }
    event.otherwise = 'continue';
    this.#guest.dispatcher.decide(event);
  }

  #hit(site: BreakpointSite, event: GuestEvent<'BREAKPOINT'>): void {
    const handlers = site.breakpoints.length === 1 ? site.breakpoints : [...site.breakpoints];
    const done = forEachThen(handlers, (breakpoint) => this.#call(breakpoint, event));
    if (isPending(done)) void done.then(() => this.#goOn(site, event));
    else this.#goOn(site, event);
  }

  #call(breakpoint: Breakpoint, event: GuestEvent<'BREAKPOINT'>): Awaitable<void> {
    breakpoint.hits++;
    return attempt(
      () => breakpoint.handler(event, breakpoint),
      (error) => {
        const message = `the handler of the breakpoint at 0x${breakpoint.gva.toString(16)} failed: ${messageOf(error)}`;
        this.#guest.report(new KvmiError('E_HANDLER', message, { cause: error }));
      },
    );
  }

  /** The handlers are done: carries the instruction out. */
  #goOn(site: BreakpointSite, event: GuestEvent<'BREAKPOINT'>): void {
    if (event.answered) return;
    const { registers } = event;
    const moved = registers.changed && registers.rip !== event.rip;
    if (moved || !site.armed) {
      event.reply('retry', registers.changed ? { registers } : undefined);
    } else if (site.original === INT3) {
      event.reply('continue', registers.changed ? { registers } : undefined);
    } else {
      carryOut(site, event, () => void this.#lock.run(() => stepOver(this.#guest, site, event)));
    }
  }
}

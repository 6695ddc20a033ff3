import { getS32 } from '../abi/bytes.ts';
import { KVM_ERRNO } from '../abi/errno.ts';
import { KVM_XSAVE_SIZE, type KvmRegs } from '../abi/x86.ts';
import { KvmiError, messageOf } from '../error.ts';
import type { CpuidLeaf, Exception, Gpa, Gva, InterceptedCr } from '../machine/index.ts';
import {
  type CommandName,
  ERROR_SIZE,
  type EventName,
  NotInDialectError,
  ProtocolError,
  type Replies,
  ReplyError,
  type Requests as RequestBodies,
} from '../wire/index.ts';
import type { Connection } from './connection.ts';
import type { GuestMemory } from './memory.ts';
import { isNotStarted } from './not-started.ts';
import { generalBytes, type Registers, registersOf } from './registers.ts';
import { VcpuStop } from './stop.ts';
import { Switch } from './switch.ts';
import { VirtualMemory } from './virtual-memory.ts';

/** A vCPU that is kept outside the guest. */
export interface Paused {
  /** Lets it run, unless somebody else keeps it. */
  resume(): void;
}

/** struct kvmi_vcpu_get_registers_reply without MSRs. */
const REGISTERS_SIZE = 472;
const NO_TRANSLATION = 2 ** 64;
/** Who wants something on when the user asked for it, rather than a helper such as breakpoints. */
const USER = 'user';

/**
 * One virtual processor of a guest.
 *
 * Its commands are carried out by the vCPU itself between two entries to the guest, also while one of its events is
 * open. They reject with a ReplyError when the host side refuses, a NotInDialectError when the dialect has no
 * such command, and a KvmiError with code E_TIMEOUT or E_CLOSED.
 */
export class GuestVcpu {
  /** Creation order, from 0. */
  readonly index: number;
  /** Memory as this vCPU addresses it, translated by the host side with its current paging. */
  readonly memory: VirtualMemory;
  /** @internal */
  readonly connection: Connection;
  /** @internal */
  readonly stop: VcpuStop;
  readonly #switches = new Map<string, Switch>();

  constructor(connection: Connection, memory: GuestMemory, index: number) {
    this.connection = connection;
    this.index = index;
    this.stop = new VcpuStop(connection, index);
    this.memory = new VirtualMemory(this, memory);
  }

  /** Any vCPU command of the dialect. */
  async command<N extends CommandName>(name: N, body: RequestBodies[N]): Promise<Replies[N]> {
    return this.connection.requests.send(name, body, this.index);
  }

  /** The registers, with the MSRs whose numbers are given. */
  async registers(msrs: readonly number[] = []): Promise<Registers> {
    const body = { nmsrs: msrs.length, msrs_idx: [...msrs] };
    return this.connection.requests.send('VCPU_GET_REGISTERS', body, this.index, (payload) => {
      checkError('VCPU_GET_REGISTERS', payload);
      const size = REGISTERS_SIZE + 16 * msrs.length;
      if (payload.length < ERROR_SIZE + size) throw cut('VCPU_GET_REGISTERS', payload.length);
      return registersOf(payload.subarray(ERROR_SIZE, ERROR_SIZE + size), 'list');
    });
  }

  /**
   * Sets general registers, rip and rflags. Only while an event of this vCPU is open (a pause counts); they take
   * effect when it is answered.
   */
  async setRegisters(registers: Registers | KvmRegs): Promise<void> {
    await this.command('VCPU_SET_REGISTERS', { regs: generalBytes(registers) });
  }

  /** The same without waiting: in front of the answer to an event. @internal */
  postRegisters(registers: Registers | KvmRegs, failed: (error: unknown) => void): void {
    this.connection.requests.post(
      'VCPU_SET_REGISTERS',
      { regs: generalBytes(registers) },
      this.index,
      failed,
    );
  }

  /** Undefined when the vCPU's CPUID table has no such leaf. */
  async cpuid(leaf: number, subleaf = 0): Promise<CpuidLeaf | undefined> {
    try {
      return await this.command('VCPU_GET_CPUID', { function: leaf, index: subleaf });
    } catch (error) {
      if (error instanceof ReplyError && error.errno === KVM_ERRNO.KVM_ENOENT) return undefined;
      throw error;
    }
  }

  /** Extended control register 0. */
  async xcr0(): Promise<bigint> {
    return (await this.command('VCPU_GET_XCR', { xcr: 0 })).value;
  }

  /** 4096 bytes in the layout of KVM_GET_XSAVE. */
  async xsave(): Promise<Uint8Array> {
    return (await this.command('VCPU_GET_XSAVE', {})).area;
  }

  async setXsave(area: Uint8Array): Promise<void> {
    if (area.length !== KVM_XSAVE_SIZE) {
      throw new KvmiError('E_ARGUMENT', `an XSAVE area has ${KVM_XSAVE_SIZE} bytes, not ${area.length}`);
    }
    await this.command('VCPU_SET_XSAVE', { data: area });
  }

  /** Memory type of a guest-physical address: 0 UC, 1 WC, 4 WT, 5 WP, 6 WB. */
  async mtrrType(gpa: Gpa): Promise<number> {
    return (await this.command('VCPU_GET_MTRR_TYPE', { gpa })).type;
  }

  /** Where a guest-virtual address leads with the current paging; undefined when nowhere. */
  async translate(gva: Gva): Promise<Gpa | undefined> {
    const { gpa } = await this.command('VCPU_TRANSLATE_GVA', { gva: BigInt.asUintN(64, gva) });
    return gpa >= NO_TRANSLATION ? undefined : gpa;
  }

  /** Queues an exception for the next entry to the guest. A TRAP event follows with what was really injected. */
  async inject(exception: Exception): Promise<void> {
    const { vector, errorCode, address } = exception;
    await this.command('VCPU_INJECT_EXCEPTION', { nr: vector, error_code: errorCode, address });
  }

  /** Virtual TSC frequency in Hz; 0 when the host cannot scale it. */
  async info(): Promise<{ tscHz: bigint }> {
    return { tscHz: (await this.command('VCPU_GET_INFO', {})).tsc_speed };
  }

  /**
   * Stops the vCPU and keeps it outside the guest. Inside the handler of one of its events it is stopped already:
   * the answer then waits until it is resumed.
   */
  async pause(): Promise<Paused> {
    return { resume: await this.stop.hold() };
  }

  /**
   * Whether events of a kind are reported. What is turned on for a vCPU that was not started yet takes effect before
   * its first instruction, here and below. BREAKPOINT stays on as long as there are breakpoints.
   */
  controlEvents(name: EventName, on: boolean): Promise<void> {
    return this.switchEvents(name, on, USER);
  }

  /** Whether writes to a control register are reported; the CR event has to be on as well. */
  controlCr(cr: InterceptedCr, on: boolean): Promise<void> {
    return this.#switch(`cr ${cr}`, (enable) =>
      this.command('VCPU_CONTROL_CR', { cr, enable: Number(enable) }),
    ).set(USER, on);
  }

  /** Whether writes to an MSR are reported; the MSR event has to be on as well. */
  controlMsr(msr: number, on: boolean): Promise<void> {
    return this.#switch(`msr ${msr}`, (enable) =>
      this.command('VCPU_CONTROL_MSR', { msr, enable: Number(enable) }),
    ).set(USER, on);
  }

  /** Whether each instruction is followed by a SINGLESTEP event. */
  singlestep(on: boolean): Promise<void> {
    return this.switchSinglestep(on, USER);
  }

  /** @internal */
  switchSinglestep(on: boolean, who: string): Promise<void> {
    return this.#switch('singlestep', async (enable) => {
      // Only v7 asks for the event to be enabled, too.
      const v7 = this.connection.dialect.name === 'v7';
      const event = v7 ? this.switchEvents('SINGLESTEP', enable, 'singlestep') : undefined;
      await Promise.all([event, this.command('VCPU_CONTROL_SINGLESTEP', { enable: Number(enable) })]);
    }).set(who, on);
  }

  /** Whether somebody wants each instruction reported. @internal */
  get singlestepping(): boolean {
    return this.#switches.get('singlestep')?.on ?? false;
  }

  /** @internal */
  switchEvents(name: EventName, on: boolean, who: string): Promise<void> {
    return this.#switch(`event ${name}`, (enable) => this.#sendControlEvents(name, enable)).set(who, on);
  }

  async #sendControlEvents(name: EventName, on: boolean): Promise<void> {
    const { dialect } = this.connection;
    const event = dialect.event(name);
    if (!event) throw new NotInDialectError(name, dialect.name);
    try {
      await this.command('VCPU_CONTROL_EVENTS', { event_id: event.id, enable: Number(on) });
    } catch (error) {
      // Before v10 the event stays enabled when the interception fails.
      if (on && dialect.name !== 'v12' && error instanceof ReplyError) {
        await this.command('VCPU_CONTROL_EVENTS', { event_id: event.id, enable: 0 }).catch(() => {});
      }
      throw error;
    }
  }

  #switch(name: string, send: (on: boolean) => Promise<unknown>): Switch {
    const found = this.#switches.get(name);
    if (found) return found;
    const created: Switch = new Switch((on) =>
      send(on).catch(async (error: unknown) => {
        if (!isNotStarted(error)) throw error;
        // Before its first instruction, then, if it is still wanted.
        if (on) await this.stop.atNextStop(() => created.on && send(true).catch(this.#report));
      }),
    );
    this.#switches.set(name, created);
    return created;
  }

  readonly #report = (error: unknown): void => this.connection.report(error as Error);

  /** Turns off everything that was turned on. Failures are reported. @internal */
  async disarm(): Promise<void> {
    const on = [...this.#switches].filter(([, each]) => each.on);
    await Promise.all(
      on.map(([name, each]) =>
        each.off().catch((error: unknown) => {
          this.connection.report(
            new KvmiError('E_DETACH', `vCPU ${this.index}: ${name} stays on: ${messageOf(error)}`, {
              cause: error,
            }),
          );
        }),
      ),
    );
  }
}

function checkError(name: CommandName, payload: Uint8Array): void {
  if (payload.length < ERROR_SIZE) throw cut(name, payload.length);
  const error = getS32(payload, 0);
  if (error !== 0) throw new ReplyError(name, -error);
}

function cut(name: CommandName, size: number): ProtocolError {
  return new ProtocolError(`the reply to ${name} has only ${size} bytes`, { name, size });
}

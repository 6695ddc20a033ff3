import { setImmediate as turn } from 'node:timers/promises';
import { getU64, putU64 } from '../../src/abi/bytes.ts';
import { KVM_ERRNO } from '../../src/abi/errno.ts';
import {
  type GeneralRegister,
  getRegister,
  kvmSregs,
  putRegister,
  regsOf,
  SREGS_OFFSET,
  STATE_SIZE,
} from '../../src/abi/index.ts';
import { type ConnectGuestOptions, connectGuest, type Guest } from '../../src/tool/index.ts';
import { loopback } from '../../src/transport/index.ts';
import type { EventData, EventName } from '../../src/wire/index.ts';
import { type HostEventReply, ScriptedHost } from './scripted-host.ts';

/** Where the toy's memory is in virtual addresses: kernel addresses, one to one. */
export const BASE = 0xffff_ffff_8000_0000n;
const SIZE = 0x10000;
const CS_SELECTOR = SREGS_OFFSET + kvmSregs.offsetOf('cs') + 12;
const NO_GPA = 2 ** 64;

/** Instructions that the toy knows, beside int3. `count` (cpuid to a real processor) adds 1 to rbx. */
export const CODE = {
  nop: [0x90],
  nop5: [0x0f, 0x1f, 0x44, 0x00, 0x00],
  count: [0x0f, 0xa2],
  push: [0x55],
  pop: [0x5d],
  copy: [0xf3, 0xa4],
  stop: [0xf4],
  /** To `distance` bytes after the jump. */
  jump: (distance: number) => [0xeb, distance & 0xff],
} as const;

/** One vCPU of the toy. */
export class ToyVcpu {
  readonly index: number;
  readonly state = new Uint8Array(STATE_SIZE);
  readonly enabled = new Set<number>();
  started = true;
  singlestep = false;
  pauses = 0;
  /** An event waits for its answer. */
  open = false;
  halted = false;
  delayed: Uint8Array | undefined;
  /** Steps that are reported as failed before one succeeds. */
  failedSteps = 0;

  constructor(index: number) {
    this.index = index;
    this.state[0] = 8;
    this.state[CS_SELECTOR] = 0x10;
  }

  get(name: GeneralRegister): bigint {
    return getRegister(this.state, name);
  }

  set(name: GeneralRegister, value: bigint): void {
    putRegister(this.state, name, value);
  }

  /** What `count` counted. */
  get counted(): number {
    return Number(this.get('rbx'));
  }

  user(): this {
    this.state[CS_SELECTOR] = 0x33;
    return this;
  }
}

/**
 * A machine of a few instructions behind a scripted host, for what depends on how code runs: every vCPU executes one
 * instruction after another, in turns, and stops for events as KVM's do.
 */
export class ToyVm {
  readonly memory = new Uint8Array(SIZE);
  readonly vcpus: ToyVcpu[];
  readonly host: ScriptedHost;
  readonly errors: Error[] = [];
  guest!: Guest;
  /** Breakpoint exceptions that the guest got itself. */
  readonly delivered: { vcpu: number; rip: bigint }[] = [];
  canSinglestep = true;
  #running = false;
  #loop: Promise<void> | undefined;

  private constructor(host: ScriptedHost, vcpus: number) {
    this.host = host;
    this.vcpus = Array.from({ length: vcpus }, (_, index) => new ToyVcpu(index));
    this.#script();
  }

  static async start(
    options: ConnectGuestOptions & { vcpus?: number; singlestep?: boolean } = {},
  ): Promise<ToyVm> {
    const [channel, other] = loopback();
    const { vcpus = 1, singlestep = true, dialect = 'v12', ...rest } = options;
    if (dialect === 'auto') throw new Error('the toy speaks one dialect');
    const vm = new ToyVm(new ScriptedHost(other, { dialect, vcpus }), vcpus);
    vm.canSinglestep = singlestep;
    vm.host.open();
    const memoryMap = [{ address: 0, length: SIZE, type: 1 }];
    vm.guest = await connectGuest(channel, {
      dialect,
      hello: { name: 'toy', uuid: new Uint8Array(16), startTime: 0, memoryMap },
      onError: (error) => vm.errors.push(error),
      ...rest,
    });
    return vm;
  }

  #script(): void {
    const { host } = this;
    const at = (index: number) => this.vcpus[index]!;
    const guarded = (index: number): number | undefined =>
      at(index).started ? undefined : KVM_ERRNO.KVM_EAGAIN;
    const bit = (name: EventName) => host.dialect.event(name)?.id;
    host
      .on('GET_VERSION', () => ({ version: 1, max_msg_size: 0, singlestep: this.canSinglestep ? 1 : 0 }))
      .on('VM_READ_PHYSICAL', ({ body: { gpa, size } }) =>
        gpa + size <= SIZE ? { data: this.memory.slice(gpa, gpa + size) } : KVM_ERRNO.KVM_ENOENT,
      )
      .on('VM_WRITE_PHYSICAL', ({ body: { gpa, size, data } }) => {
        if (gpa + size > SIZE) return KVM_ERRNO.KVM_ENOENT;
        this.memory.set(data, gpa);
        return {};
      })
      .on('VCPU_TRANSLATE_GVA', ({ body: { gva } }) => ({ gpa: this.translate(gva) }))
      .on('VCPU_GET_INFO', ({ vcpu }) => guarded(vcpu) ?? { tsc_speed: 0n })
      .on('VM_PAUSE_VCPU', ({ vcpu, body }) => {
        at(body.vcpu ?? vcpu).pauses++;
        return {};
      })
      .on('VCPU_CONTROL_EVENTS', ({ vcpu, body: { event_id, enable } }) => {
        const refused = guarded(vcpu);
        if (refused) return refused;
        const { enabled } = at(vcpu);
        if (event_id === bit('BREAKPOINT') && enabled.has(event_id) === (enable === 1))
          return KVM_ERRNO.KVM_EBUSY;
        if (enable) enabled.add(event_id);
        else enabled.delete(event_id);
        return {};
      })
      .on('VCPU_CONTROL_SINGLESTEP', ({ vcpu, body }) => {
        if (!this.canSinglestep) return KVM_ERRNO.KVM_EOPNOTSUPP;
        at(vcpu).singlestep = body.enable === 1;
        return {};
      })
      .on('VCPU_SET_REGISTERS', ({ vcpu, body }) => {
        if (!at(vcpu).open) return KVM_ERRNO.KVM_EOPNOTSUPP;
        at(vcpu).delayed = body.regs.slice();
        return {};
      });
  }

  translate(gva: bigint): number {
    return gva >= BASE && gva < BASE + BigInt(SIZE) ? Number(gva - BASE) : NO_GPA;
  }

  /** Puts code at an offset of the memory; the result is the offset behind it. */
  load(offset: number, ...code: readonly (readonly number[])[]): number {
    const bytes = code.flat();
    this.memory.set(bytes, offset);
    return offset + bytes.length;
  }

  /** Lets the vCPUs run, all from `offset`. */
  run(offset: number): void {
    for (const vcpu of this.vcpus) {
      vcpu.set('rip', BASE + BigInt(offset));
      vcpu.set('rsp', BASE + BigInt(SIZE - 0x1000 * (vcpu.index + 1)));
    }
    this.resume();
  }

  resume(): void {
    this.#running = true;
    this.#loop = this.#execute();
  }

  /** Stops between instructions, with no event open. */
  async stop(): Promise<void> {
    this.#running = false;
    await this.#loop;
    await this.until('the last answers', () => this.vcpus.every((vcpu) => !vcpu.open));
  }

  async until(what: string, condition: () => boolean): Promise<void> {
    const end = Date.now() + 10_000;
    while (!condition()) {
      if (Date.now() > end) throw new Error(`${what} did not happen`);
      await turn();
    }
  }

  async #execute(): Promise<void> {
    while (this.#running && !this.host.closed) {
      for (let i = 0; i < 20; i++) {
        for (const vcpu of this.vcpus) if (vcpu.started && !vcpu.open) this.#step(vcpu);
      }
      await turn();
    }
  }

  async #event<N extends EventName>(
    vcpu: ToyVcpu,
    name: N,
    data: EventData[N],
    then: (reply: HostEventReply) => void = () => {},
  ): Promise<void> {
    vcpu.open = true;
    const reply = await this.host.event(name, vcpu.index, data, vcpu.state.slice());
    if (vcpu.delayed) regsOf(vcpu.state).set(vcpu.delayed);
    vcpu.delayed = undefined;
    vcpu.open = false;
    then(reply);
  }

  #reports(vcpu: ToyVcpu, name: EventName): boolean {
    return vcpu.enabled.has(this.host.dialect.event(name)!.id);
  }

  #step(vcpu: ToyVcpu): void {
    if (vcpu.pauses > 0) {
      vcpu.pauses--;
      void this.#event(vcpu, 'PAUSE', {});
      return;
    }
    if (vcpu.singlestep && vcpu.failedSteps > 0) {
      vcpu.failedSteps--;
      void this.#event(vcpu, 'SINGLESTEP', { failed: 1 });
      return;
    }
    const rip = vcpu.get('rip');
    const at = this.translate(rip);
    if (this.memory[at] === 0xcc) {
      this.#breakpoint(vcpu, rip, at);
      return;
    }
    this.#carryOut(vcpu, rip, at);
    const wanted = vcpu.singlestep && (this.host.dialect.name !== 'v7' || this.#reports(vcpu, 'SINGLESTEP'));
    if (wanted) void this.#event(vcpu, 'SINGLESTEP', { failed: 0 });
  }

  #breakpoint(vcpu: ToyVcpu, rip: bigint, gpa: number): void {
    const deliver = () => {
      this.delivered.push({ vcpu: vcpu.index, rip });
      vcpu.set('rip', rip + 1n);
    };
    if (!this.#reports(vcpu, 'BREAKPOINT')) deliver();
    else {
      void this.#event(vcpu, 'BREAKPOINT', { gpa, insn_len: 1 }, ({ action }) => {
        if (action === 'continue') deliver();
      });
    }
  }

  #carryOut(vcpu: ToyVcpu, rip: bigint, at: number): void {
    const { memory } = this;
    const is = (code: readonly number[]) => code.every((byte, i) => memory[at + i] === byte);
    const next = (length: number) => vcpu.set('rip', rip + BigInt(length));
    const rsp = vcpu.get('rsp');
    if (is(CODE.nop)) next(1);
    else if (is(CODE.nop5)) next(5);
    else if (is(CODE.count)) {
      vcpu.set('rbx', vcpu.get('rbx') + 1n);
      next(2);
    } else if (is(CODE.push)) {
      putU64(memory, this.translate(rsp - 8n), vcpu.get('rbp'));
      vcpu.set('rsp', rsp - 8n);
      next(1);
    } else if (is(CODE.pop)) {
      vcpu.set('rbp', getU64(memory, this.translate(rsp)));
      vcpu.set('rsp', rsp + 8n);
      next(1);
    } else if (is(CODE.copy)) {
      const left = vcpu.get('rcx');
      if (left > 0n) vcpu.set('rcx', left - 1n);
      if (left <= 1n) next(2);
    } else if (memory[at] === 0xeb) {
      next(2 + ((memory[at + 1]! << 24) >> 24));
    } else if (is(CODE.stop)) {
      vcpu.halted = true;
    } else {
      throw new Error(`vCPU ${vcpu.index} at 0x${rip.toString(16)}: unknown byte ${memory[at]}`);
    }
  }
}

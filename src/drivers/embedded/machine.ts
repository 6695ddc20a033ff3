import { randomBytes } from 'node:crypto';
import { KvmiError } from '../../error.ts';
import {
  ACCESS,
  attachedAlready,
  type Capabilities,
  type Frames,
  type Machine,
  type MachineHandler,
  PAGE_SIZE,
  type PreUnhookReason,
  type Trap,
  type Vcpu,
} from '../../machine/index.ts';
import { CAPABILITIES } from './capabilities.ts';
import { CodeCache } from './cpu/code.ts';
import type { Cpu, CpuSurroundings } from './cpu/cpu.ts';
import type { OpCache } from './cpu/op.ts';
import { ATTENTION } from './cpu/signals.ts';
import { RBX } from './cpu/slots.ts';
import { Apic, type InterProcessorBus } from './devices/apic.ts';
import { Clock } from './devices/clock.ts';
import { Ports } from './devices/ports.ts';
import { SerialPort } from './devices/serial.ts';
import { GuestMemory } from './memory.ts';
import { EmbeddedProbes } from './probes.ts';
import { scheduler } from './scheduler.ts';
import { type CrashReason, EmbeddedVcpu, type VcpuOwner } from './vcpu.ts';
import { MemoryViews } from './views.ts';

/** Code to start with, entered in flat 32-bit protected mode. */
export interface GuestImage {
  readonly bytes: Uint8Array;
  /** Physical address that it is loaded at. */
  readonly address: number;
  /** Physical address of the first instruction. */
  readonly entry: number;
}

export interface EmbeddedMachineOptions {
  readonly image: GuestImage;
  /** Value of ebx at the entry. */
  readonly bootArgument?: number;
  /** Size of RAM in bytes; default 16 MiB. */
  readonly memory?: number;
  /** How many vCPUs; default 1. All but the first wait to be started by the guest. */
  readonly vcpus?: number;
  readonly name?: string;
  /** 16 bytes; random when absent. */
  readonly uuid?: Uint8Array;
  /** `host` (default): guest time is host time. `instructions`: it counts instructions, and runs can be repeated. @internal */
  readonly clock?: 'host' | 'instructions';
}

/** A vCPU that left the guest for good. */
export interface Crash {
  readonly vcpu: Vcpu;
  readonly reason: CrashReason;
}

const DEFAULT_MEMORY = 16 * 1024 * 1024;
const VCPU_LIMIT = 64;
/** Instructions that one vCPU runs before the next one and the clock get a look. */
const QUANTUM = 5_000;
/** The longest that an idle machine sleeps before it looks at its timers again, in milliseconds. */
const LONGEST_SLEEP = 60_000;

/**
 * A virtual machine inside this process: an interpreter of x86-64 code that can report, before it happens, every
 * effect that KVMI knows of. One object is the device manager's side (start, pause, serial port) and the machine
 * that an introspection attaches to.
 */
export class EmbeddedMachine implements Machine {
  readonly name: string;
  readonly uuid: Uint8Array;
  readonly startTime = Number(process.hrtime.bigint() / 1_000_000n);
  readonly capabilities: Capabilities = CAPABILITIES;
  readonly memory: GuestMemory;
  readonly views: MemoryViews;
  readonly probes: EmbeddedProbes;
  readonly frames: Frames = {
    allocate: (gfn) => this.memory.addFrame(gfn) && this.#framesChanged(),
    free: (gfn) => this.memory.removeFrame(gfn) && this.#framesChanged(),
  };
  readonly serial = new SerialPort();
  readonly clock: Clock;
  /** Called when a vCPU leaves the guest for good. */
  onCrash: ((crash: Crash) => void) | undefined;
  /** Called when the guest writes its exit code to the debug-exit port. */
  onExit: ((code: number) => void) | undefined;
  /** What the guest wrote to the debug-exit port. */
  exitCode: number | undefined;

  readonly #vcpus: EmbeddedVcpu[] = [];
  readonly #cpus: Cpu[] = [];
  readonly #image: GuestImage;
  readonly #bootArgument: number;
  readonly #surroundings: CpuSurroundings;
  readonly #bus: InterProcessorBus;
  readonly #owner: VcpuOwner;
  #handler: MachineHandler | undefined;
  #session = 0;
  #running = false;
  #ended = false;
  #timer: NodeJS.Timeout | undefined;
  /** The vCPU that gets the next quantum. */
  #next = 0;

  constructor(options: EmbeddedMachineOptions) {
    const { vcpus = 1, memory = DEFAULT_MEMORY, uuid = new Uint8Array(randomBytes(16)) } = options;
    if (!Number.isInteger(vcpus) || vcpus < 1 || vcpus > VCPU_LIMIT) {
      throw new KvmiError('E_ARGUMENT', `vcpus: ${vcpus} is not between 1 and ${VCPU_LIMIT}`);
    }
    if (uuid.length !== 16) throw new KvmiError('E_ARGUMENT', `uuid: ${uuid.length} bytes, not 16`);
    this.name = options.name ?? 'embedded';
    this.uuid = uuid;
    this.memory = new GuestMemory(memory);
    this.clock = new Clock(options.clock === 'instructions');
    this.#image = options.image;
    this.#bootArgument = options.bootArgument ?? 0;
    const code: OpCache = new CodeCache(this.memory.bytes.length / PAGE_SIZE);
    this.memory.code = code;
    this.probes = new EmbeddedProbes(code);
    this.views = new MemoryViews(this.memory, this.#cpus, (vcpu) => (vcpu as EmbeddedVcpu).cpu);
    this.#surroundings = {
      memory: this.memory,
      code,
      views: this.views,
      ports: new Ports(this.serial, (code) => this.#exit(code)),
      clock: this.clock,
    };
    this.#bus = this.#makeBus();
    this.#owner = this.#makeOwner();
    for (let i = 0; i < vcpus; i++) this.#makeVcpu();
    this.#load();
  }

  get vcpus(): readonly EmbeddedVcpu[] {
    return this.#vcpus;
  }

  /** True between `start` or `resume` and `pause` or the end. */
  get running(): boolean {
    return this.#running;
  }

  /* The device manager's side. */

  /** Lets the guest run, in slices on the event loop. */
  start(): void {
    this.resume();
  }

  /** Stops every vCPU. Requests wait until the machine runs again. */
  pause(): void {
    this.#running = false;
    for (const vcpu of this.#vcpus) vcpu.leave();
    this.clock.stop();
    this.#sleepUntil(Number.POSITIVE_INFINITY);
    scheduler.remove(this.#task);
  }

  resume(): void {
    if (this.#running || this.#ended) return;
    this.#running = true;
    this.clock.start();
    scheduler.add(this.#task);
  }

  /**
   * Runs up to `instructions` at once, on all vCPUs together; for tests and measurements. Returns how many ran:
   * fewer when every vCPU is idle or waits for its handler.
   */
  run(instructions: number): number {
    if (this.#ended) return 0;
    this.clock.start();
    let executed = 0;
    while (executed < instructions && !this.#ended && this.exitCode === undefined) {
      const ran = this.#quantum(Math.min(QUANTUM, instructions - executed));
      executed += ran;
      if (ran === 0 && !this.#skipIdleTime()) break;
    }
    if (!this.#running) this.clock.stop();
    return executed;
  }

  /** Runs one instruction of one vCPU, handling its stops. False when it could not run. */
  step(vcpu = 0): boolean {
    return this.#vcpus[vcpu]!.run(1) === 1;
  }

  /** Instructions executed by all vCPUs. */
  get instructions(): number {
    return this.#vcpus.reduce((sum, vcpu) => sum + vcpu.instructions, 0);
  }

  /** Adds a vCPU, which waits to be started by the guest. Resolves when the handler has seen it. */
  async addVcpu(): Promise<EmbeddedVcpu> {
    if (this.#vcpus.length >= VCPU_LIMIT) {
      throw new KvmiError('E_LIMIT', `${this.name}: there are ${VCPU_LIMIT} vCPUs already`);
    }
    const vcpu = this.#makeVcpu();
    await new Promise<void>((resolve) => vcpu.announce(resolve));
    return vcpu;
  }

  /** Requests an interrupt of a vCPU, as a device would. */
  interrupt(vector: number, vcpu = 0): void {
    const target = this.#vcpus[vcpu]!;
    target.cpu.apic.raise(vector);
    target.cpu.updateInterrupt();
    this.#wake();
  }

  /** Ends the machine for good, after the handler had its chance to leave. */
  async shutdown(): Promise<void> {
    if (this.#ended) return;
    await this.offerUnhook('shutdown');
    this.#end();
  }

  /** Starts again from the image, after the handler had its chance to leave. */
  async reset(): Promise<void> {
    await this.offerUnhook('reset');
    const wasRunning = this.#running;
    this.pause();
    this.memory.reset();
    for (const vcpu of this.#vcpus) vcpu.reset();
    this.exitCode = undefined;
    this.#load();
    if (wasRunning) this.resume();
  }

  /** Tells the handler that the machine is about to be taken away, and waits for it. */
  async offerUnhook(reason: PreUnhookReason): Promise<void> {
    await this.#handler?.preUnhook?.(reason);
  }

  /* The side of introspection. */

  attach(handler: MachineHandler): void {
    if (this.#handler) throw attachedAlready(this.name);
    if (this.#ended) throw new KvmiError('E_GONE', `${this.name}: the machine was shut down`);
    this.#handler = handler;
    this.#session++;
  }

  detach(): void {
    if (!this.#handler) return;
    this.#handler = undefined;
    this.#session++;
    this.probes.clear();
    for (const vcpu of this.#vcpus) vcpu.release();
    this.views.clear();
    this.#wake();
  }

  arm(trap: Trap): void {
    if (trap.kind === 'page') this.#restrict(trap.view, trap.gfn, trap.access);
    else this.#own(trap.vcpu).setTrap(trap, true);
  }

  disarm(trap: Trap): void {
    if (trap.kind !== 'page') this.#own(trap.vcpu).setTrap(trap, false);
    else if (this.views.exists(trap.view)) this.#restrict(trap.view, trap.gfn, ACCESS.all);
  }

  /** Ends the machine without asking. */
  async kill(): Promise<void> {
    this.#end();
  }

  async close(): Promise<void> {
    this.detach();
    this.#end();
  }

  #restrict(view: number, gfn: number, access: number): void {
    if (this.views.restrict(view, gfn, access)) return;
    throw new KvmiError('E_ARGUMENT', `${this.name}: there is no view ${view}`);
  }

  #framesChanged(): true {
    this.views.flush();
    return true;
  }

  #own(vcpu: Vcpu): EmbeddedVcpu {
    const own = this.#vcpus[vcpu.index];
    if (own !== vcpu) throw new KvmiError('E_ARGUMENT', `${this.name}: that is not a vCPU of this machine`);
    return own;
  }

  /* Time. */

  readonly #task = { slice: (milliseconds: number) => this.#slice(milliseconds) };

  /** A slice on the event loop; true when there is more to do at once. */
  #slice(milliseconds: number): boolean {
    if (!this.#running) return false;
    const end = performance.now() + milliseconds;
    do {
      if (this.#quantum(QUANTUM) === 0) {
        if (this.#skipIdleTime()) continue;
        this.#sleepUntil(this.#nextDeadline());
        return false;
      }
      if (!this.#running) return false;
    } while (performance.now() < end);
    return true;
  }

  /** One quantum for each vCPU that can run. Returns how many instructions ran. */
  #quantum(instructions: number): number {
    const now = this.clock.now();
    for (const vcpu of this.#vcpus) {
      if (now >= vcpu.cpu.apic.deadline && vcpu.cpu.apic.tick(now)) vcpu.cpu.updateInterrupt();
    }
    const count = this.#vcpus.length;
    const share = Math.max(1, Math.ceil(instructions / count));
    let executed = 0;
    for (let i = 0; i < count && executed < instructions; i++) {
      const vcpu = this.#vcpus[(this.#next + i) % count]!;
      if (vcpu.runnable) executed += vcpu.run(Math.min(share, instructions - executed));
    }
    this.#next = (this.#next + 1) % count;
    this.clock.ran(executed);
    return executed;
  }

  /** Guest time of the next timer interrupt. */
  #nextDeadline(): number {
    let deadline = Number.POSITIVE_INFINITY;
    for (const vcpu of this.#vcpus) {
      if (vcpu.started && !vcpu.cpu.dead && !vcpu.waiting) {
        deadline = Math.min(deadline, vcpu.cpu.apic.deadline);
      }
    }
    return deadline;
  }

  /** On a clock that counts instructions, an idle machine is at its next timer at once. */
  #skipIdleTime(): boolean {
    const deadline = this.#nextDeadline();
    if (!this.clock.countsInstructions || deadline === Number.POSITIVE_INFINITY) return false;
    this.clock.skipTo(deadline);
    return true;
  }

  #sleepUntil(deadline: number): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (deadline === Number.POSITIVE_INFINITY) return;
    const milliseconds = Math.min(LONGEST_SLEEP, Math.max(0, (deadline - this.clock.now()) / 1e6));
    this.#timer = setTimeout(() => this.#wake(), Math.ceil(milliseconds));
  }

  #wake(): void {
    if (!this.#running) return;
    this.#sleepUntil(Number.POSITIVE_INFINITY);
    scheduler.add(this.#task);
  }

  /* Parts. */

  #makeVcpu(): EmbeddedVcpu {
    const index = this.#vcpus.length;
    const apic = new Apic(index, this.clock, this.#bus);
    const vcpu = new EmbeddedVcpu(index, apic, this.#surroundings, this.#owner);
    this.#surroundings.code.listeners.push(vcpu.cpu);
    this.#vcpus.push(vcpu);
    this.#cpus.push(vcpu.cpu);
    return vcpu;
  }

  #load(): void {
    const { bytes, address, entry } = this.#image;
    if (!this.memory.write(address, bytes)) {
      throw new KvmiError(
        'E_ARGUMENT',
        `image: ${bytes.length} bytes do not fit at ${address} in guest memory`,
        {
          hint: 'Give the machine more memory.',
        },
      );
    }
    const { cpu } = this.#vcpus[0]!;
    cpu.ripLo = entry;
    cpu.r[RBX] = this.#bootArgument;
  }

  #makeOwner(): VcpuOwner {
    const machine = this;
    return {
      get handler() {
        return machine.#handler;
      },
      get session() {
        return machine.#session;
      },
      wake: (vcpu) => {
        scheduler.conversation();
        // A request is served at once, not when the machine has its turn; but not from within the caller.
        if ((vcpu.cpu.attention & ATTENTION.request) !== 0) queueMicrotask(() => machine.#serve(vcpu));
        machine.#wake();
      },
      hitProbe: (vcpu, address) => machine.probes.handlerAt(address)?.(vcpu),
      crashed: (vcpu, reason) => machine.onCrash?.({ vcpu, reason }),
      handlerFailed: (error) => machine.#handlerFailed(error),
    };
  }

  #serve(vcpu: EmbeddedVcpu): void {
    if (this.#running) vcpu.serveRequest();
  }

  /** A handler that throws is let go, so that the guest is not left in the middle of something. */
  #handlerFailed(error: unknown): void {
    const handler = this.#handler;
    this.detach();
    handler?.closed(error instanceof Error ? error : new Error(String(error)));
  }

  #makeBus(): InterProcessorBus {
    return {
      count: () => this.#vcpus.length,
      interrupt: (target, vector) => {
        const { cpu } = this.#vcpus[target]!;
        cpu.apic.raise(vector);
        cpu.updateInterrupt();
      },
      init: () => {},
      startup: (target, page) => this.#vcpus[target]!.start(page * 4096),
    };
  }

  #exit(code: number): void {
    this.exitCode = code;
    this.pause();
    this.onExit?.(code);
  }

  #end(): void {
    if (this.#ended) return;
    this.pause();
    this.#ended = true;
    const handler = this.#handler;
    this.detach();
    handler?.closed();
  }
}

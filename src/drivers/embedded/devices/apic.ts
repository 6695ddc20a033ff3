import type { Clock } from './clock.ts';

/** Registers of the x2APIC, as offsets from MSR 0x800. */
const REGISTER = {
  id: 0x02,
  version: 0x03,
  taskPriority: 0x08,
  endOfInterrupt: 0x0b,
  spurious: 0x0f,
  inService: 0x10,
  requested: 0x20,
  command: 0x30,
  timer: 0x32,
  initialCount: 0x38,
  currentCount: 0x39,
  divide: 0x3e,
  selfIpi: 0x3f,
} as const;

const VERSION = 0x0005_0014;
const TIMER_MASKED = 1 << 16;
const TIMER_PERIODIC = 1 << 17;
/** Ticks of the timer are nanoseconds; a period below this would leave no time for the guest. */
const SHORTEST_PERIOD = 20_000;

/** Delivery modes of the interrupt command register. */
const MODE = { fixed: 0, init: 5, startup: 6 } as const;

/** What an interrupt command asks other processors to do. */
export interface InterProcessorBus {
  interrupt(target: number, vector: number): void;
  /** INIT, then STARTUP at `page` × 4 KiB. */
  init(target: number): void;
  startup(target: number, page: number): void;
  /** Number of processors. */
  count(): number;
}

/**
 * The local APIC of one processor in x2APIC mode: interrupts by priority, the timer, and commands to other
 * processors. There is no I/O APIC, no NMI and no error reporting.
 */
export class Apic {
  readonly #id: number;
  readonly #clock: Clock;
  readonly #bus: InterProcessorBus;
  readonly #requested = new Uint32Array(8);
  readonly #inService = new Uint32Array(8);
  #spurious = 0xff;
  #timer = TIMER_MASKED;
  #divide = 0;
  #initialCount = 0;
  #period = 0;
  /** CR8. */
  taskPriority = 0;
  /** Guest time at which the timer fires next. */
  deadline = Number.POSITIVE_INFINITY;

  constructor(id: number, clock: Clock, bus: InterProcessorBus) {
    this.#id = id;
    this.#clock = clock;
    this.#bus = bus;
  }

  reset(): void {
    this.#requested.fill(0);
    this.#inService.fill(0);
    this.#spurious = 0xff;
    this.#timer = TIMER_MASKED;
    this.#divide = 0;
    this.#initialCount = 0;
    this.taskPriority = 0;
    this.deadline = Number.POSITIVE_INFINITY;
  }

  /** Requests an interrupt. */
  raise(vector: number): void {
    if (vector >= 16) set(this.#requested, vector);
  }

  /** The vector to deliver now, as far as priorities go, or -1. */
  pending(): number {
    const vector = highest(this.#requested);
    if (vector < 0) return -1;
    const priority = Math.max(this.taskPriority, highest(this.#inService) >> 4);
    return vector >> 4 > priority ? vector : -1;
  }

  /** The processor took the interrupt. */
  acknowledge(vector: number): void {
    clear(this.#requested, vector);
    set(this.#inService, vector);
  }

  /** Fires the timer if its time has come. True when an interrupt was requested. */
  tick(now: number): boolean {
    if (now < this.deadline) return false;
    const periodic = (this.#timer & TIMER_PERIODIC) !== 0;
    this.deadline = periodic
      ? this.deadline + this.#period * Math.max(1, Math.ceil((now - this.deadline) / this.#period))
      : Number.POSITIVE_INFINITY;
    if ((this.#timer & TIMER_MASKED) !== 0) return false;
    this.raise(this.#timer & 0xff);
    return true;
  }

  /** The low half of a register; the high half is 0. Undefined when it cannot be read. */
  read(register: number): number | undefined {
    if (register >= REGISTER.inService && register < REGISTER.inService + 8) {
      return this.#inService[register - REGISTER.inService]! | 0;
    }
    if (register >= REGISTER.requested && register < REGISTER.requested + 8) {
      return this.#requested[register - REGISTER.requested]! | 0;
    }
    switch (register) {
      case REGISTER.id:
        return this.#id;
      case REGISTER.version:
        return VERSION;
      case REGISTER.taskPriority:
        return this.taskPriority << 4;
      case REGISTER.spurious:
        return this.#spurious;
      case REGISTER.command:
        return 0;
      case REGISTER.timer:
        return this.#timer;
      case REGISTER.initialCount:
        return this.#initialCount;
      case REGISTER.currentCount:
        return this.#currentCount();
      case REGISTER.divide:
        return this.#divide;
      default:
        return undefined;
    }
  }

  accepts(register: number): boolean {
    const { taskPriority, endOfInterrupt, spurious, command, timer, initialCount, divide, selfIpi } =
      REGISTER;
    return [taskPriority, endOfInterrupt, spurious, command, timer, initialCount, divide, selfIpi].includes(
      register as typeof command,
    );
  }

  write(register: number, lo: number, hi: number): void {
    switch (register) {
      case REGISTER.taskPriority:
        this.taskPriority = (lo >>> 4) & 15;
        break;
      case REGISTER.endOfInterrupt: {
        const vector = highest(this.#inService);
        if (vector >= 0) clear(this.#inService, vector);
        break;
      }
      case REGISTER.spurious:
        this.#spurious = lo & 0x1ff;
        break;
      case REGISTER.command:
        this.#command(lo, hi);
        break;
      case REGISTER.timer:
        this.#timer = lo & (0xff | TIMER_MASKED | TIMER_PERIODIC);
        break;
      case REGISTER.initialCount:
        this.#initialCount = lo;
        this.#startTimer();
        break;
      case REGISTER.divide:
        this.#divide = lo & 11;
        break;
      case REGISTER.selfIpi:
        this.raise(lo & 0xff);
        break;
    }
  }

  /** The divisor as its three bits say: 2, 4, … 128, then 1. */
  #divisor(): number {
    return 1 << ((((this.#divide & 3) | ((this.#divide & 8) >> 1)) + 1) & 7);
  }

  #startTimer(): void {
    const ticks = this.#initialCount >>> 0;
    this.#period = Math.max(SHORTEST_PERIOD, ticks * this.#divisor());
    this.deadline = ticks === 0 ? Number.POSITIVE_INFINITY : this.#clock.now() + this.#period;
  }

  #currentCount(): number {
    if (this.deadline === Number.POSITIVE_INFINITY) return 0;
    return Math.max(0, Math.floor((this.deadline - this.#clock.now()) / this.#divisor())) | 0;
  }

  #command(lo: number, hi: number): void {
    const vector = lo & 0xff;
    const mode = (lo >>> 8) & 7;
    for (let target = 0; target < this.#bus.count(); target++) {
      if (!this.#addresses(target, lo, hi)) continue;
      if (mode === MODE.fixed) this.#bus.interrupt(target, vector);
      else if (mode === MODE.init) this.#bus.init(target);
      else if (mode === MODE.startup) this.#bus.startup(target, vector);
    }
  }

  /** Whether a command is for `target`: by id, or by shorthand (self, all, all but self). */
  #addresses(target: number, lo: number, hi: number): boolean {
    switch ((lo >>> 18) & 3) {
      case 1:
        return target === this.#id;
      case 2:
        return true;
      case 3:
        return target !== this.#id;
      default:
        return hi === -1 || target === hi;
    }
  }
}

function set(bits: Uint32Array, vector: number): void {
  bits[vector >> 5]! |= 1 << (vector & 31);
}

function clear(bits: Uint32Array, vector: number): void {
  bits[vector >> 5]! &= ~(1 << (vector & 31));
}

function highest(bits: Uint32Array): number {
  for (let i = 7; i >= 0; i--) if (bits[i] !== 0) return 32 * i + 31 - Math.clz32(bits[i]!);
  return -1;
}

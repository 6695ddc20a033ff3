import { getRegister, putMode, putRegister, regsOf, SREGS_OFFSET, STATE_SIZE } from '../../abi/state.ts';
import { EFER_LMA, kvmSregs } from '../../abi/x86.ts';
import type { PhysicalMemory } from '../../machine/memory.ts';
import { translate } from '../../machine/page-walk.ts';
import { pagingOf } from '../../machine/paging.ts';
import { type Answer, CONTINUE } from '../../machine/stops.ts';
import { type CpuState, putSegment, type SegmentCache, segmentSelector } from './cpu-state.ts';
import { readGate, readSegment } from './descriptors.ts';
import type { GdbClient } from './gdb.ts';
import { writeChangedRegisters } from './registers.ts';
import type { RunControl } from './run-control.ts';
import { readBytes, StoppedMemory, writeBytes } from './stopped-memory.ts';
import { type Encounter, POINT_ORDER, type StoppedVcpu, type TrapPoint } from './stopped-vcpu.ts';

const VECTOR_BP = 3;
const INT3 = 0xcc;
/** No instruction takes longer, but one that waits for an interrupt. */
const STEP_MS = 100;
const FRAME_SIZE = 40;
const IDT_OFFSET = SREGS_OFFSET + kvmSregs.offsetOf('idt');
const ALL_ONES = 2 ** 64;

/** What the CPU pushed when it delivered an exception in 64-bit mode. */
interface Frame {
  readonly rip: bigint;
  readonly cs: number;
  readonly rflags: bigint;
  readonly rsp: bigint;
  readonly ss: number;
}

/** The state of a vCPU at its #BP handler, and what it was before the delivery. */
export interface Delivery {
  /** The state block as it is. */
  readonly block: Uint8Array;
  readonly frame: Frame;
  /** Address of the int3. */
  readonly int3: bigint;
  readonly cs: SegmentCache;
  readonly ss: SegmentCache;
}

/**
 * Intercepts #BP in 64-bit guests: a trap point on the first instruction of each vCPU's own #BP handler. There the
 * CPU has pushed its frame and the guest has not run yet, so that the delivery can be taken back exactly: only dead
 * stack below the interrupted stack pointer was written.
 */
export class BreakpointTrap implements TrapPoint {
  readonly order = POINT_ORDER.delivery;
  readonly #control: RunControl;
  readonly #memory: PhysicalMemory;
  readonly #armed = new Set<number>();
  /** Plugged in since, and not armed yet. */
  readonly #fresh = new Set<number>();
  /** What each armed vCPU's handler was resolved from, and to. */
  readonly #resolved = new Map<number, { readonly key: string; readonly handler: bigint | undefined }>();

  readonly #onHandler: (gva: bigint) => void;
  readonly #originalAt: (gpa: number) => number | undefined;

  /** `onHandler` is told of each handler before a trap point is set on it. `originalAt`: what a tool's int3 took the place of. */
  constructor(
    control: RunControl,
    memory: PhysicalMemory,
    onHandler: (gva: bigint) => void,
    originalAt: (gpa: number) => number | undefined,
  ) {
    this.#control = control;
    this.#memory = memory;
    this.#onHandler = onHandler;
    this.#originalAt = originalAt;
  }

  /** The handlers that have a trap point. */
  get handlers(): ReadonlySet<bigint> {
    const handlers = [...this.#resolved.values()].map(({ handler }) => handler);
    return new Set(handlers.filter((handler) => handler !== undefined));
  }

  /** A vCPU whose tool may not know it: until it is armed it executes what int3 took the place of. */
  plugged(vcpu: number): void {
    this.#fresh.add(vcpu);
  }

  async arm(vcpu: number, gdb: GdbClient): Promise<void> {
    this.#fresh.delete(vcpu);
    this.#armed.add(vcpu);
    await this.refresh(vcpu, await this.#control.stopped(vcpu, gdb).state(), gdb);
  }

  async disarm(vcpu: number, gdb: GdbClient): Promise<void> {
    this.#armed.delete(vcpu);
    const handler = this.#resolved.get(vcpu)?.handler;
    this.#resolved.delete(vcpu);
    await this.#release(handler, gdb);
  }

  /** Forgets what is armed, with its points. */
  clear(): void {
    this.#armed.clear();
    this.#fresh.clear();
    this.#resolved.clear();
  }

  /** Follows a guest that has loaded another IDT: to be called with each state that was read of an armed vCPU. */
  async refresh(vcpu: number, state: CpuState, gdb: GdbClient): Promise<void> {
    if (!this.#armed.has(vcpu)) return;
    const block = blockOf(state);
    const key = idtKey(block);
    const before = this.#resolved.get(vcpu);
    if (before?.key === key) return;
    const handler = await this.#findHandler(block);
    this.#resolved.set(vcpu, { key, handler });
    await this.#release(before?.handler, gdb);
    if (handler === undefined) return;
    this.#onHandler(handler);
    await this.#control.points.add(gdb, handler, this);
  }

  async examine(vcpu: StoppedVcpu): Promise<Encounter | undefined> {
    const fresh = this.#fresh.has(vcpu.index);
    if (!fresh && !this.#armed.has(vcpu.index)) return undefined;
    const delivery = await readDelivery(this.#memory, await vcpu.state());
    if (delivery === undefined) return undefined;
    const gpa = await translate(this.#memory, pagingOf(delivery.block), delivery.int3);
    if (fresh) return this.#passing(delivery, gpa);
    return {
      stop: { kind: 'breakpoint', gpa: gpa ?? ALL_ONES, length: 1 },
      present: (block) => presentUndelivered(block, delivery),
      settle: async (stopped, answer, registers) => this.#settle(stopped, delivery, answer, registers),
    };
  }

  /** The instruction is executed as if there were no int3, while the other vCPUs stay stopped. */
  #passing(delivery: Delivery, gpa: number | undefined): Encounter | undefined {
    const original = gpa === undefined ? undefined : this.#originalAt(gpa);
    if (gpa === undefined || original === undefined) return undefined;
    return {
      visit: () => CONTINUE,
      settle: async (vcpu) => {
        await undeliver(vcpu, delivery);
        await vcpu.gdb.writePhysical(gpa, Uint8Array.of(original));
        await this.#control.stepAlone(vcpu.index, vcpu.gdb, { timeoutMs: STEP_MS });
        await vcpu.gdb.writePhysical(gpa, Uint8Array.of(INT3));
        return 'run';
      },
    };
  }

  async #settle(
    vcpu: StoppedVcpu,
    delivery: Delivery,
    answer: Answer,
    registers: Uint8Array | undefined,
  ): Promise<'run' | 'step-over'> {
    if (answer.action !== 'continue') {
      await undeliver(vcpu, delivery, registers);
      return 'run';
    }
    if (registers) await redeliver(new StoppedMemory(this.#memory, vcpu.gdb), vcpu, delivery, registers);
    return 'step-over';
  }

  async #findHandler(block: Uint8Array): Promise<bigint | undefined> {
    // Before the guest is in 64-bit mode there is nothing to intercept with; the next state is looked at again.
    if ((getRegister(block, 'efer') & EFER_LMA) === 0n) return undefined;
    try {
      return (await readGate(this.#memory, pagingOf(block), block, VECTOR_BP))?.handler;
    } catch {
      return undefined;
    }
  }

  /** Removes the point at `handler` unless it is another vCPU's, too. */
  async #release(handler: bigint | undefined, gdb: GdbClient): Promise<void> {
    const shared = [...this.#resolved.values()].some((other) => other.handler === handler);
    if (handler !== undefined && !shared) await this.#control.points.remove(gdb, handler, this);
  }
}

function blockOf(state: CpuState): Uint8Array {
  const block = new Uint8Array(STATE_SIZE);
  state.writeBlock(block);
  return block;
}

/** What a handler's address depends on. */
function idtKey(block: Uint8Array): string {
  const paging = ['cr4', 'efer'] as const;
  const idt = Buffer.from(block.buffer, block.byteOffset + IDT_OFFSET, 10).toString('hex');
  return `${idt} ${paging.map((name) => getRegister(block, name).toString(16)).join(' ')}`;
}

/**
 * Reads the delivery of a #BP from a vCPU at the first instruction of its handler. Undefined when it was not int3
 * that raised it (`int $3`, which virtualization does not intercept), or the frame makes no sense.
 */
export async function readDelivery(memory: PhysicalMemory, state: CpuState): Promise<Delivery | undefined> {
  const block = blockOf(state);
  const paging = pagingOf(block);
  try {
    const bytes = await readBytes(memory, paging, getRegister(block, 'rsp'), FRAME_SIZE, 'the frame of #BP');
    const frame: Frame = {
      rip: bytes.readBigUInt64LE(0),
      cs: bytes.readUInt16LE(8),
      rflags: bytes.readBigUInt64LE(16),
      rsp: bytes.readBigUInt64LE(24),
      ss: bytes.readUInt16LE(32),
    };
    const code = await readBytes(memory, paging, frame.rip - 2n, 2, 'the code before #BP').catch(
      () => undefined,
    );
    if (code?.[0] === 0xcd && code[1] === VECTOR_BP) return undefined;
    const cs = await readSegment(memory, paging, block, frame.cs);
    const ss = await readSegment(memory, paging, block, frame.ss);
    if (cs === undefined || ss === undefined) return undefined;
    return { block, frame, int3: frame.rip - 1n, cs, ss };
  } catch {
    return undefined;
  }
}

function presentUndelivered(block: Uint8Array, { frame, int3, cs, ss }: Delivery): void {
  putRegister(block, 'rip', int3);
  putRegister(block, 'rsp', frame.rsp);
  putRegister(block, 'rflags', frame.rflags);
  putSegment(block, 'cs', cs);
  putSegment(block, 'ss', ss);
  putMode(block);
}

/** Takes the delivery back: the vCPU is before the int3 again, or where `registers` (kvm_regs) say. */
export async function undeliver(
  { gdb, index }: StoppedVcpu,
  delivery: Delivery,
  registers?: Uint8Array,
): Promise<void> {
  const wanted = new Uint8Array(delivery.block);
  presentUndelivered(wanted, delivery);
  if (registers) regsOf(wanted).set(registers);
  await Promise.all([
    // In 32-bit code QEMU would not write all registers; the segments come after them, and rip last.
    writeChangedRegisters(gdb, index, withRip(wanted, delivery.block), regsOf(delivery.block)),
    ...(['cs', 'ss'] as const)
      .filter((name) => segmentSelector(delivery.block, name) !== delivery[name].selector)
      .map((name) => gdb.writeRegister(index, name, BigInt(delivery[name].selector))),
    gdb.writeRegister(index, 'rip', getRegister(wanted, 'rip')),
  ]);
}

/** kvm_regs of `block` with the rip of `other`. */
function withRip(block: Uint8Array, other: Uint8Array): Uint8Array {
  const copy = new Uint8Array(block);
  putRegister(copy, 'rip', getRegister(other, 'rip'));
  return regsOf(copy);
}

/** Lets the guest's handler find what it would have found, had the int3 been executed with `registers`. */
async function redeliver(
  memory: PhysicalMemory,
  { gdb, index }: StoppedVcpu,
  { block, frame }: Delivery,
  registers: Uint8Array,
): Promise<void> {
  const wanted = new Uint8Array(block);
  regsOf(wanted).set(registers);
  const bytes = Buffer.alloc(FRAME_SIZE);
  bytes.writeBigUInt64LE(BigInt.asUintN(64, getRegister(wanted, 'rip') + 1n), 0);
  bytes.writeBigUInt64LE(BigInt(frame.cs), 8);
  bytes.writeBigUInt64LE(getRegister(wanted, 'rflags'), 16);
  bytes.writeBigUInt64LE(getRegister(wanted, 'rsp'), 24);
  bytes.writeBigUInt64LE(BigInt(frame.ss), 32);
  await writeBytes(memory, pagingOf(block), getRegister(block, 'rsp'), bytes, 'the frame of #BP');
  for (const name of ['rip', 'rsp', 'rflags'] as const) putRegister(wanted, name, getRegister(block, name));
  await writeChangedRegisters(gdb, index, regsOf(wanted), regsOf(block));
}

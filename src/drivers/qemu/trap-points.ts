import type { Stop } from '../../machine/stops.ts';
import { MAX_LENGTH, mayBranchToItself } from '../../x86/index.ts';
import type { GdbClient } from './gdb.ts';
import type { Encounter, StoppedVcpu, TrapPoint, VcpuRun } from './stopped-vcpu.ts';

const HLT = 0xf4;
/** Where a vCPU is; rcx, which tells how often a string instruction is still to be repeated, only of one that steps. */
export interface Place {
  readonly rip: bigint;
  readonly rcx: bigint | undefined;
}

/** The trap points of a machine, by address, and what vCPUs meet there. Points do not touch guest memory. */
export class TrapPoints {
  readonly #points = new Map<bigint, TrapPoint[]>();
  readonly #stopped: (vcpu: number) => StoppedVcpu;
  readonly #lost: () => boolean;

  /** `stopped` gives a vCPU while all are stopped; `lost` whether the gdbstub is gone. */
  constructor(stopped: (vcpu: number) => StoppedVcpu, lost: () => boolean) {
    this.#stopped = stopped;
    this.#lost = lost;
  }

  /** With every vCPU stopped. */
  async add(gdb: GdbClient, gva: bigint, point: TrapPoint): Promise<void> {
    const there = this.#points.get(gva) ?? [];
    if (there.includes(point)) return;
    this.#points.set(
      gva,
      [...there, point].sort((a, b) => a.order - b.order),
    );
    if (there.length > 0) return;
    try {
      await gdb.setBreakpoint(1, gva, 1);
    } catch (error) {
      this.#points.delete(gva);
      throw error;
    }
  }

  async remove(gdb: GdbClient, gva: bigint, point: TrapPoint): Promise<void> {
    const there = this.#points.get(gva);
    if (!there?.includes(point)) return;
    if (there.length > 1) {
      this.#points.set(
        gva,
        there.filter((other) => other !== point),
      );
    } else {
      this.#points.delete(gva);
      await gdb.removeBreakpoint(1, gva, 1);
    }
  }

  /** QEMU sets a breakpoint on the vCPUs that there are: others have been added. With every vCPU stopped. */
  async setAgain(gdb: GdbClient): Promise<void> {
    for (const gva of this.#points.keys()) {
      await gdb.removeBreakpoint(1, gva, 1);
      await gdb.setBreakpoint(1, gva, 1);
    }
  }

  async clear(gdb: GdbClient): Promise<void> {
    for (const gva of this.#points.keys()) await gdb.removeBreakpoint(1, gva, 1);
    this.#points.clear();
  }

  /**
   * Whether a vCPU that ran, and is now at `rip` if that is known, may have had QEMU stop the VM. A step need not lead to
   * another instruction; it ends only afterwards when it led to where the vCPU waits for an interrupt.
   */
  async mayStop(vcpu: VcpuRun, gdb: GdbClient, rip: bigint): Promise<boolean> {
    if (this.#points.has(rip)) return true;
    return vcpu.stepUnfinished && !(await hasHalted(gdb, vcpu, rip));
  }

  /** Whether {@link mayStop} can be true of a vCPU. */
  canStop(vcpu: VcpuRun): boolean {
    return vcpu.stepUnfinished || this.#points.size > 0;
  }

  /** Finds out what a vCPU that ran and is now at a place has stopped for. `reported`: QEMU says that it was this vCPU. */
  async examine(vcpu: VcpuRun, { rip, rcx }: Place, reported: boolean): Promise<void> {
    const moved = vcpu.rip !== rip;
    // String instructions are repeated.
    const progressed = moved || vcpu.rcx !== rcx;
    const stepped = vcpu.stepUnfinished && (progressed || (reported && (await this.#mayStay(vcpu, rip))));
    vcpu.rip = rip;
    vcpu.rcx = rcx;
    vcpu.state = undefined;
    if (reported) vcpu.stepUnfinished = false;
    // A step may end before its instruction (a start-up IPI); none of those at trap points leads back to itself.
    if (moved) vcpu.stepOver = vcpu.waits = false;
    const points = vcpu.stepOver ? [] : (this.#points.get(rip) ?? []);
    vcpu.ahead = points;
    const encounter = await this.#meet(vcpu);
    if (points.length > 0 && encounter === undefined) vcpu.stepOver = vcpu.rip === rip;
    // An int3 that was stepped onto is an exit for another reason than the step, and comes before it.
    const failed = encounter?.stop?.kind === 'breakpoint';
    const step: Stop[] = stepped && vcpu.stepping ? [{ kind: 'singlestep', failed }] : [];
    const met = encounter === undefined ? [] : [encounter];
    vcpu.queue.push(...(failed ? [...met, ...step] : [...step, ...met]));
  }

  /**
   * Whether the instruction at `rip` may have been executed, and changed nothing but led to itself. Otherwise QEMU has ended the step before it,
   * as something called the vCPU out of the guest just then.
   */
  async #mayStay({ index }: VcpuRun, rip: bigint): Promise<boolean> {
    return mayBranchToItself(await this.#stopped(index).gdb.readVirtual(index, rip, MAX_LENGTH), rip);
  }

  /** An instruction is to be executed: those points that are to be asked after what was settled are. */
  async meetRest(vcpu: VcpuRun): Promise<void> {
    if (!vcpu.stepOver || vcpu.crashed) vcpu.ahead = [];
    if (vcpu.ahead.length === 0) return;
    const rip = await this.#stopped(vcpu.index).gdb.readRegister(vcpu.index, 'rip');
    vcpu.rip = rip;
    const encounter = await this.#meet(vcpu);
    if (encounter) vcpu.queue.unshift(encounter);
    // One that was asked may have carried the instruction out.
    vcpu.stepOver = encounter === undefined && vcpu.rip === rip;
  }

  /** What the vCPU meets next where it is. */
  async #meet(vcpu: VcpuRun): Promise<Encounter | undefined> {
    let encounter: Encounter | undefined;
    while (encounter === undefined && vcpu.ahead.length > 0) {
      const [point, ...rest] = vcpu.ahead;
      vcpu.ahead = rest;
      encounter = await this.#ask(point!, vcpu);
    }
    return encounter;
  }

  /** What a point cannot make sense of (memory that is not there any more) concerns nobody. */
  async #ask(point: TrapPoint, vcpu: VcpuRun): Promise<Encounter | undefined> {
    try {
      return await point.examine(this.#stopped(vcpu.index));
    } catch (error) {
      if (this.#lost()) throw error;
      return undefined;
    }
  }
}

/** Whether a vCPU has done nothing since it was seen last but to execute `hlt`, then or before. */
export async function hasHalted(
  gdb: GdbClient,
  { index, rip: before }: VcpuRun,
  rip: bigint,
): Promise<boolean> {
  if (rip !== before && rip - 1n !== before) return false;
  const [byte] = await gdb.readVirtual(index, rip - 1n, 1);
  return byte === HLT;
}

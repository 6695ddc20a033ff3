import { CONTINUE } from '../../machine/stops.ts';
import type { CpuState } from './cpu-state.ts';
import type { GdbClient } from './gdb.ts';
import { type StoppedVcpu, VcpuRun } from './stopped-vcpu.ts';

/** The vCPUs of a VM, by index. */
export class VcpuRuns {
  readonly all: VcpuRun[] = [];
  readonly #readStates: (gdb: GdbClient) => Promise<ReadonlyMap<number, CpuState>>;

  /** `readStates` reads the state of all vCPUs while they are stopped. */
  constructor(
    present: readonly number[],
    readStates: (gdb: GdbClient) => Promise<ReadonlyMap<number, CpuState>>,
  ) {
    this.#readStates = readStates;
    this.set(present);
  }

  /** Which there are. */
  get present(): readonly number[] {
    return this.all.filter(({ absent }) => !absent).map(({ index }) => index);
  }

  /** One that is there. */
  get first(): VcpuRun {
    return this.all[this.present[0]!]!;
  }

  /** Which there are from now on. Answers whether there are any that were not there. */
  set(present: readonly number[]): boolean {
    const before = this.present;
    for (let index = this.all.length; index <= Math.max(...present); index++)
      this.all.push(new VcpuRun(index));
    for (const vcpu of this.all) {
      const absent = !present.includes(vcpu.index);
      if (absent === vcpu.absent) continue;
      vcpu.reset();
      vcpu.absent = absent;
      if (absent && vcpu.hold) vcpu.hold.answer ??= CONTINUE;
    }
    return this.present.some((index) => !before.includes(index));
  }

  /** A vCPU for a task, which runs with every vCPU stopped. */
  stopped(vcpu: number, gdb: GdbClient): StoppedVcpu {
    const run = this.all[vcpu]!;
    return {
      index: vcpu,
      gdb,
      state: () => this.state(run, gdb),
      changed: () => run.forget(),
    };
  }

  /** With every vCPU stopped: the states of all are read at once, and kept until they run. */
  async state(vcpu: VcpuRun, gdb: GdbClient): Promise<CpuState> {
    if (vcpu.hold?.state) return vcpu.hold.state;
    if (vcpu.state === undefined) {
      const states = await this.#readStates(gdb);
      for (const other of this.all) {
        other.state = states.get(other.index);
        if (other.hold) other.hold.seen = other.hold.state ??= other.state;
      }
    }
    return vcpu.state!;
  }
}

import type { RegionMemory } from '../../machine/region-memory.ts';
import type { Trap } from '../../machine/stops.ts';
import { BreakpointTrap } from './breakpoint-trap.ts';
import { CpuidReader } from './cpuid-reader.ts';
import type { BorrowedVcpu } from './guard/borrowed-vcpu.ts';
import { Injection } from './injection.ts';
import { InstructionTraps } from './instruction-traps.ts';
import type { RunControl } from './run-control.ts';

/** What is written down before it is done, for the guard. */
export interface TrapsOwner {
  /** A vCPU executes something for kvmi; null: not any more. */
  borrowed(vcpu: BorrowedVcpu | null): void;
  /** A breakpoint of the gdbstub is set at the guest's #BP handler. */
  handler(gva: bigint): void;
  /** The byte below an int3 that was written through the machine. */
  originalAt(gpa: number): number | undefined;
}

/** What makes the vCPUs of a QEMU machine stop, and what is done through such stops. */
export class QemuTraps {
  readonly breakpoints: BreakpointTrap;
  readonly injection: Injection;
  readonly cpuid: CpuidReader;
  readonly #control: RunControl;
  readonly #instructions: Readonly<Record<'cr' | 'msr' | 'xsetbv', InstructionTraps>>;

  constructor(control: RunControl, memory: RegionMemory, owner: TrapsOwner) {
    const borrowed = (vcpu: BorrowedVcpu | null) => owner.borrowed(vcpu);
    this.#control = control;
    this.breakpoints = new BreakpointTrap(
      control,
      memory,
      (gva) => owner.handler(gva),
      (gpa) => owner.originalAt(gpa),
    );
    this.injection = new Injection(control, memory);
    this.#instructions = {
      cr: new InstructionTraps(control, memory, 'cr', borrowed),
      msr: new InstructionTraps(control, memory, 'msr', borrowed),
      xsetbv: new InstructionTraps(control, memory, 'xsetbv', borrowed),
    };
    this.cpuid = new CpuidReader(control, memory, borrowed);
  }

  arm(trap: Trap): Promise<void> {
    return this.#change('arm', trap);
  }

  disarm(trap: Trap): Promise<void> {
    return this.#change('disarm', trap);
  }

  /** Nothing is armed any more. */
  clear(): void {
    this.breakpoints.clear();
    this.injection.clear();
    for (const traps of Object.values(this.#instructions)) traps.clear();
  }

  async #change(what: 'arm' | 'disarm', trap: Trap): Promise<void> {
    switch (trap.kind) {
      case 'breakpoint':
        return this.#control.exclusive((gdb) => this.breakpoints[what](trap.vcpu.index, gdb));
      case 'singlestep':
        return this.#control.exclusive(async () => {
          this.#control.vcpus[trap.vcpu.index]!.stepping = what === 'arm';
        });
      case 'cr':
      case 'msr':
      case 'xsetbv':
        return this.#control.exclusive((gdb) => this.#instructions[trap.kind][what](trap, gdb));
    }
  }
}

import { getU64 } from '../../abi/bytes.ts';
import { kvmRegs } from '../../abi/x86.ts';
import { then } from '../../awaitable.ts';
import { KvmiError } from '../../error.ts';
import type { Gva } from '../../machine/address.ts';
import type { MachineProbeHandler, MachineProbes } from '../../machine/probes.ts';
import { type Answer, CONTINUE, RETRY } from '../../machine/stops.ts';
import type { Vcpu } from '../../machine/vcpu.ts';
import { writeReleasedRegisters } from './registers.ts';
import type { RunControl } from './run-control.ts';
import { type Encounter, POINT_ORDER, type StoppedVcpu, type TrapPoint } from './stopped-vcpu.ts';

const RIP = kvmRegs.offsetOf('rip');

/** Probes by breakpoints of the gdbstub. Under TCG they are QEMU's own: it compares addresses, and there is no limit. */
export class QemuProbes implements MachineProbes {
  readonly kind = 'gdbstub';
  readonly count = Number.POSITIVE_INFINITY;
  readonly #control: RunControl;
  readonly #vcpus: () => readonly Vcpu[];
  readonly #points = new Map<Gva, ProbePoint>();

  /** @internal */
  constructor(control: RunControl, vcpus: () => readonly Vcpu[]) {
    this.#control = control;
    this.#vcpus = vcpus;
  }

  async set(gva: Gva, hit: MachineProbeHandler): Promise<() => Promise<void>> {
    const address = BigInt.asUintN(64, gva);
    if (this.#points.has(address)) {
      throw new KvmiError('E_BUSY', `there is a probe at 0x${address.toString(16)} already`);
    }
    const point = new ProbePoint((vcpu) => hit(this.#vcpus()[vcpu]!));
    this.#points.set(address, point);
    try {
      await this.#control.exclusive((gdb) => this.#control.points.add(gdb, address, point));
    } catch (error) {
      this.#points.delete(address);
      throw isRefusal(error) ? exhausted(address, error) : error;
    }
    return () => this.#remove(address, point);
  }

  async #remove(address: Gva, point: ProbePoint): Promise<void> {
    if (this.#points.get(address) !== point) return;
    this.#points.delete(address);
    point.hit = undefined;
    await this.#control.exclusive((gdb) => this.#control.points.remove(gdb, address, point));
  }

  /** Forgets what is set, with its points. */
  clear(): void {
    for (const point of this.#points.values()) point.hit = undefined;
    this.#points.clear();
  }
}

/** The point of one probe. */
class ProbePoint implements TrapPoint {
  readonly order = POINT_ORDER.probe;
  /** Undefined when the probe was removed: a vCPU may have met it just before. */
  hit: ((vcpu: number) => ReturnType<MachineProbeHandler>) | undefined;

  constructor(hit: (vcpu: number) => ReturnType<MachineProbeHandler>) {
    this.hit = hit;
  }

  async examine({ index }: StoppedVcpu): Promise<Encounter | undefined> {
    return (
      this.hit && {
        visit: () => then(this.hit?.(index), (answer) => (answer === 'retry' ? RETRY : CONTINUE)),
        settle: (vcpu, answer, registers) => this.#settle(vcpu, answer, registers),
      }
    );
  }

  async #settle(
    vcpu: StoppedVcpu,
    { action }: Answer,
    registers: Uint8Array | undefined,
  ): Promise<'run' | 'step-over'> {
    const { rip } = await vcpu.state();
    if (registers) await writeReleasedRegisters(vcpu, registers);
    const moved = registers !== undefined && getU64(registers, RIP) !== rip;
    return action === 'retry' || moved ? 'run' : 'step-over';
  }
}

function isRefusal(error: unknown): boolean {
  return error instanceof KvmiError && error.code === 'E_GDB_REFUSED';
}

function exhausted(address: Gva, cause: unknown): KvmiError {
  return new KvmiError('E_NO_MEMORY', `QEMU takes no further breakpoint at 0x${address.toString(16)}`, {
    cause,
  });
}

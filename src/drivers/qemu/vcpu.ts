import { regsOf } from '../../abi/state.ts';
import { kvmRegs } from '../../abi/x86.ts';
import type { Awaitable } from '../../awaitable.ts';
import { KvmiError } from '../../error.ts';
import { type Capabilities, type CapabilityName, requireCapability } from '../../machine/capabilities.ts';
import type { CpuidLeaf, Exception, Vcpu } from '../../machine/vcpu.ts';
import type { CpuState } from './cpu-state.ts';
import type { CpuidReader } from './cpuid-reader.ts';
import type { RunControl } from './run-control.ts';
import type { Hold } from './stopped-vcpu.ts';

/** One vCPU of a QEMU machine. */
export class QemuVcpu implements Vcpu {
  readonly index: number;
  readonly tscHz: number;
  started = true;
  readonly #control: RunControl;
  readonly #cpuid: CpuidReader;
  readonly #capabilities: () => Capabilities;

  /** @internal */
  constructor(
    index: number,
    tscHz: number,
    control: RunControl,
    cpuid: CpuidReader,
    capabilities: () => Capabilities,
  ) {
    this.#cpuid = cpuid;
    this.index = index;
    this.tscHz = tscHz;
    this.#control = control;
    this.#capabilities = capabilities;
  }

  request(): Awaitable<void> {
    return this.#control.request(this.index);
  }

  async readState(into: Uint8Array): Promise<void> {
    const hold = this.#hold();
    (await this.#state()).writeBlock(into);
    hold.encounter?.present?.(into);
    // what was written takes effect when the vCPU goes on, but is its state from now on
    if (hold.registers) regsOf(into).set(hold.registers);
  }

  writeRegisters(regs: Uint8Array): void {
    this.#hold().registers = regs.slice(0, kvmRegs.size);
  }

  async readMsr(index: number): Promise<bigint | undefined> {
    return (await this.#stateFor('msrs')).msr(index);
  }

  cpuid(leaf: number, subleaf: number): Promise<CpuidLeaf | undefined> {
    this.#need('cpuid');
    this.#hold();
    return this.#control.exclusive((gdb) => this.#cpuid.read(this.index, leaf, subleaf, gdb));
  }

  async xcr0(): Promise<bigint> {
    return (await this.#stateFor('xcr')).xcr0;
  }

  async readXsave(into: Uint8Array): Promise<void> {
    (await this.#stateFor('xsave')).writeXsave(into);
  }

  async writeXsave(): Promise<boolean> {
    this.#need('set-xsave');
    return false;
  }

  async mtrrType(gpa: number): Promise<number> {
    return (await this.#stateFor('mtrr')).mtrrType(gpa);
  }

  inject(exception: Exception): void {
    this.#need('inject');
    this.#hold().exception = exception;
  }

  #need(name: CapabilityName): void {
    requireCapability(this.#capabilities(), name);
  }

  async #stateFor(name: CapabilityName): Promise<CpuState> {
    this.#hold();
    const state = await this.#state();
    // Only the first state that is read shows whether QEMU's format is the expected one.
    this.#need(name);
    return state;
  }

  #state(): Promise<CpuState> {
    return this.#control.state(this.index);
  }

  #hold(): Hold {
    const { hold } = this.#control.vcpus[this.index]!;
    if (hold) return hold;
    throw new KvmiError('E_VCPU_RUNNING', `vCPU ${this.index} is in the guest`, {
      hint: 'Use a vCPU only inside the stop and request calls of the machine handler.',
    });
  }
}

import { getRegister, STATE_SIZE } from '../../abi/state.ts';
import { KvmiError } from '../../error.ts';
import type { PhysicalMemory } from '../../machine/memory.ts';
import { pagingOf } from '../../machine/paging.ts';
import type { CpuidLeaf } from '../../machine/vcpu.ts';
import { readVirtual } from '../../machine/virtual-memory.ts';
import type { CpuState } from './cpu-state.ts';
import { segmentSelector } from './cpu-state.ts';
import { stepCpuid } from './cpuid-step.ts';
import { readGate } from './descriptors.ts';
import type { GdbClient } from './gdb.ts';
import type { BorrowedVcpu } from './guard/borrowed-vcpu.ts';
import { findOpcode, kernelPaging } from './kernel-code.ts';
import type { RunControl } from './run-control.ts';
import { hasMoved, type StoppedVcpu } from './stopped-vcpu.ts';

const CPUID = [0x0f, 0xa2] as const;
const USER_TABLE = 0x1000n;
/** Others who let the VM run all the time do not let its state be read. */
const FRESH_TRIES = 20;

const CR4_OSXSAVE = 1n << 18n;
const CR4_PKE = 1n << 22n;

/** The leaves whose number of subleaves or contents depend on XCR0. */
const CHANGING = 0xd;

/** The first leaf of each range, which tells the last one in eax, and how far a range may reach. */
const RANGES = [0, 0x40000000, 0x80000000, 0xc0000000] as const;
const RANGE_SIZE = 0x10000;

/**
 * Reads CPUID as the guest sees it: with a cpuid instruction that is somewhere in the guest's kernel, executed by one
 * step of a vCPU with interrupts masked and its registers put back. What a leaf says does not change but for a
 * few bits, so it is done once for each.
 */
export class CpuidReader {
  readonly #control: RunControl;
  readonly #memory: PhysicalMemory;
  readonly #onBorrow: (vcpu: BorrowedVcpu | null) => void;
  readonly #known = new Map<string, CpuidLeaf>();
  #gadget: bigint | undefined;

  /** `onBorrow` is told what a vCPU's registers are before they are changed, and null when they are so again. */
  constructor(control: RunControl, memory: PhysicalMemory, onBorrow: (vcpu: BorrowedVcpu | null) => void) {
    this.#control = control;
    this.#memory = memory;
    this.#onBorrow = onBorrow;
  }

  /** Undefined when there is no such leaf. With every vCPU stopped. */
  async read(vcpu: number, leaf: number, subleaf: number, gdb: GdbClient): Promise<CpuidLeaf | undefined> {
    const first = RANGES.findLast((start) => leaf >>> 0 >= start)!;
    const { eax: last } = await this.#leaf(vcpu, first, 0, gdb);
    const plausible = last >= first && last - first < RANGE_SIZE;
    if (leaf !== first && (!plausible || leaf > last)) return undefined;
    if (leaf === first && first !== 0 && !plausible) return undefined;
    return this.#leaf(vcpu, leaf, subleaf, gdb);
  }

  async #leaf(vcpu: number, leaf: number, subleaf: number, gdb: GdbClient): Promise<CpuidLeaf> {
    const stopped = this.#control.stopped(vcpu, gdb);
    const state = await stopped.state();
    const key = `${vcpu} ${leaf} ${subleaf}`;
    const known = leaf === CHANGING ? undefined : this.#known.get(key);
    const values = known ?? (await this.#execute(stopped, leaf, subleaf));
    this.#known.set(key, values);
    return withDynamicBits(values, leaf, subleaf, state);
  }

  /** By the vCPU itself, or, while it is halted, by one that is not: they differ in their APIC ids only. */
  async #execute(vcpu: StoppedVcpu, leaf: number, subleaf: number): Promise<CpuidLeaf> {
    for (let tries = 0; tries < FRESH_TRIES; tries++) {
      const runner = await this.#runner(vcpu);
      const values = await this.#run(runner, leaf, subleaf);
      // It may have halted since that was looked at, as others had let it run.
      if (values === undefined) runner.changed();
      else if (runner === vcpu) return values;
      else return withApicId(values, leaf, (await vcpu.state()).apicId ?? vcpu.index);
    }
    throw noGadget('every vCPU is halted, and no interrupt woke one');
  }

  async #runner(vcpu: StoppedVcpu): Promise<StoppedVcpu> {
    if (!(await this.#fresh(vcpu)).halted) return vcpu;
    for (const { index, hold, gone } of this.#control.vcpus) {
      if (hold || gone) continue;
      const other = this.#control.stopped(index, vcpu.gdb);
      const { halted, started } = await this.#fresh(other);
      if (started && !halted) return other;
    }
    return vcpu;
  }

  async #run(vcpu: StoppedVcpu, leaf: number, subleaf: number): Promise<CpuidLeaf | undefined> {
    const block = new Uint8Array(STATE_SIZE);
    const state = await vcpu.state();
    state.writeBlock(block);
    const gadget = await this.#findGadget(block);
    const mode = (segmentSelector(block, 'ss') & 3) === 0 ? [] : await this.#ring0(block);
    const step = { vcpu, block, halted: state.halted, gadget, mode, leaf, subleaf };
    return stepCpuid(this.#control, step, this.#onBorrow);
  }

  /** The state of a vCPU as it is now: others may have let it run since it was read. */
  async #fresh(vcpu: StoppedVcpu): Promise<CpuState> {
    for (let tries = 0; tries < FRESH_TRIES; tries++) {
      const state = await vcpu.state();
      if (!(await hasMoved(vcpu, state))) return state;
      vcpu.changed();
    }
    throw noGadget('somebody lets the VM run again and again');
  }

  /** The registers by which a vCPU that is in user mode executes code of the kernel. */
  async #ring0(block: Uint8Array): Promise<(readonly [name: string, value: bigint])[]> {
    const gate = await readGate(this.#memory, pagingOf(block), block, 3);
    if (gate === undefined) throw noGadget('the guest has no code segment for ring 0');
    const cr3 = getRegister(block, 'cr3');
    return [
      ['cs', BigInt(gate.selector & ~3)],
      ['ss', 0n],
      ...(cr3 & USER_TABLE ? [['cr3', cr3 & ~USER_TABLE] as const] : []),
    ];
  }

  async #findGadget(block: Uint8Array): Promise<bigint> {
    const paging = await kernelPaging(this.#memory, block);
    const code = new Uint8Array(CPUID.length);
    const isThere = async (gva: bigint) =>
      (await readVirtual(this.#memory, paging, gva, code)) && code.every((byte, i) => byte === CPUID[i]);
    if (this.#gadget === undefined || !(await isThere(this.#gadget))) {
      this.#gadget = undefined;
      for (const gva of await findOpcode(this.#memory, paging, CPUID, () => true)) {
        if (await isThere(gva)) this.#gadget ??= gva;
      }
    }
    if (this.#gadget === undefined) throw noGadget("there is no cpuid instruction in the guest's kernel");
    return this.#gadget;
  }
}

function withApicId(values: CpuidLeaf, leaf: number, apicId: number): CpuidLeaf {
  if (leaf === 1) return { ...values, ebx: ((values.ebx & 0xffffff) | (apicId << 24)) >>> 0 };
  if (leaf === 0xb || leaf === 0x1f) return { ...values, edx: apicId };
  if (leaf === 0x8000001e) return { ...values, eax: apicId };
  return values;
}

/** Bits that show what the operating system has enabled in CR4. */
function withDynamicBits(values: CpuidLeaf, leaf: number, subleaf: number, state: CpuState): CpuidLeaf {
  const block = new Uint8Array(STATE_SIZE);
  const shows =
    (leaf === 1 && ([27, CR4_OSXSAVE] as const)) || (leaf === 7 && subleaf === 0 && ([4, CR4_PKE] as const));
  if (!shows) return values;
  state.writeBlock(block);
  const [bit, mask] = shows;
  const on = (getRegister(block, 'cr4') & mask) !== 0n;
  const ecx = on ? values.ecx | (1 << bit) : values.ecx & ~(1 << bit);
  return { ...values, ecx: ecx >>> 0 };
}

function noGadget(why: string): KvmiError {
  return new KvmiError('E_CPUID', `CPUID cannot be read now: ${why}`);
}

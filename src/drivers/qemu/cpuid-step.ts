import { getRegister } from '../../abi/state.ts';
import { RFLAGS_IF, RFLAGS_TF } from '../../abi/x86.ts';
import { KvmiError } from '../../error.ts';
import type { CpuidLeaf } from '../../machine/vcpu.ts';
import { type BorrowedVcpu, borrowedVcpu } from './guard/borrowed-vcpu.ts';
import type { RunControl } from './run-control.ts';
import { POINT_ORDER, type StoppedVcpu, type TrapPoint } from './stopped-vcpu.ts';

/** A halted vCPU executes its next instruction when an interrupt wakes it: a timer, as a rule. */
const WAKE_TIMEOUT_MS = 2000;
const LOW = 0xffffffffn;
const LENGTH = 2n;
const RESULTS = ['rax', 'rbx', 'rcx', 'rdx'] as const;
/** Nobody's. When others let the borrowed vCPU run it is to stop behind the instruction. */
const BEHIND: TrapPoint = { order: POINT_ORDER.delivery, examine: async () => undefined };

type Registers = readonly (readonly [name: string, value: bigint])[];

/** A vCPU, and how it is brought to execute a cpuid instruction. */
export interface CpuidStep {
  readonly vcpu: StoppedVcpu;
  /** Its state block. */
  readonly block: Uint8Array;
  readonly halted: boolean;
  /** Where the instruction is. */
  readonly gadget: bigint;
  /** What it needs to execute code of the kernel, such as another segment: in the order in which it is written. */
  readonly mode: Registers;
  readonly leaf: number;
  readonly subleaf: number;
}

/**
 * Has a vCPU execute cpuid, and gives it its registers back. Undefined: it is halted, and nothing woke it. `onBorrow` is
 * told what they are before they are changed, and null when they are so again.
 *
 * Others may let the VM run at any moment, between any two packets. So what is to be put back is read in one piece with what
 * is changed and the step; meanwhile the vCPU takes no interrupt and comes no further than a breakpoint behind the
 * instruction; and it gets everything back in one piece.
 */
export async function stepCpuid(
  control: RunControl,
  step: CpuidStep,
  onBorrow: (vcpu: BorrowedVcpu | null) => void,
): Promise<CpuidLeaf | undefined> {
  const { vcpu, block, halted, gadget, mode, leaf, subleaf } = step;
  // One that is halted has to be woken.
  const mask = halted ? RFLAGS_TF : RFLAGS_TF | RFLAGS_IF;
  const { gdb, index } = vcpu;
  const changed: Registers = [
    ...mode,
    ['eflags', getRegister(block, 'rflags') & ~mask],
    ['rax', BigInt(leaf >>> 0)],
    ['rcx', BigInt(subleaf >>> 0)],
    ['rip', gadget],
  ];
  // rip comes last: in 32-bit code it is cut by the segment that is loaded then.
  const borrowed = [...RESULTS, 'eflags', ...mode.map(([name]) => name).reverse(), 'rip'];
  const read = (): Promise<Registers> =>
    Promise.all(borrowed.map(async (name) => [name, await gdb.readRegister(index, name)] as const));
  let own: Registers = [];
  const borrow = (registers: Registers): void => {
    own = registers;
    onBorrow(borrowedVcpu(index, own, [gadget, gadget + LENGTH]));
  };
  borrow(await read());
  await control.points.add(gdb, gadget + LENGTH, BEHIND);
  try {
    const prepare = async (): Promise<void> => {
      const reading = read();
      await Promise.all(changed.map(([name, value]) => gdb.writeRegister(index, name, value)));
      borrow(await reading);
    };
    await control.stepAlone(index, gdb, { timeoutMs: WAKE_TIMEOUT_MS, at: gadget, prepare });
    return await giveBack(control, step, own);
  } finally {
    await control.points.remove(gdb, gadget + LENGTH, BEHIND);
    onBorrow(null);
  }
}

async function giveBack(
  control: RunControl,
  { vcpu: { gdb, index }, gadget }: CpuidStep,
  own: Registers,
): Promise<CpuidLeaf | undefined> {
  const behind = gadget + LENGTH;
  const whereIs = () => gdb.readRegister(index, 'rip');
  let rip = await whereIs();
  // Others have let a halted one run, and an interrupt has come: it comes back from that first.
  for (
    const deadline = Date.now() + WAKE_TIMEOUT_MS;
    rip !== gadget && rip !== behind;
    rip = await whereIs()
  ) {
    if (Date.now() > deadline)
      throw new KvmiError('E_QEMU_STATE', `vCPU ${index} did not come back from an interrupt`);
    await control.runOn(index, gdb, WAKE_TIMEOUT_MS);
  }
  const results = RESULTS.map((name) => gdb.readRegister(index, name));
  const written = own.map(([name, value]) => gdb.writeRegister(index, name, value));
  const [eax, ebx, ecx, edx] = (await Promise.all(results)).map((value) => Number(value & LOW));
  await Promise.all(written);
  if (rip === gadget) return undefined;
  return { eax: eax!, ebx: ebx!, ecx: ecx!, edx: edx! };
}

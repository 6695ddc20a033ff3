import { type GeneralRegister, getRegister, putRegister, regsOf, STATE_SIZE } from '../../abi/state.ts';
import { NUMBERED_REGISTERS } from '../../abi/x86.ts';
import type { PhysicalMemory } from '../../machine/memory.ts';
import { pagingOf } from '../../machine/paging.ts';
import type { Answer, InterceptedCr, Stop, Trap } from '../../machine/stops.ts';
import { readVirtual } from '../../machine/virtual-memory.ts';
import { isRex } from '../../x86/encodings.ts';
import { deliverException } from './exception-delivery.ts';
import type { GdbClient } from './gdb.ts';
import { type BorrowedVcpu, borrowedVcpu } from './guard/borrowed-vcpu.ts';
import { findOpcode, isPrefix, kernelPaging } from './kernel-code.ts';
import { writeChangedRegisters } from './registers.ts';
import type { RunControl } from './run-control.ts';
import { StoppedMemory } from './stopped-memory.ts';
import { type Encounter, POINT_ORDER, type StoppedVcpu, type TrapPoint } from './stopped-vcpu.ts';

const MAX_INSTRUCTION = 15;
const GENERAL_PROTECTION = { vector: 13, errorCode: 0, address: 0n };
const CR3_NO_FLUSH = 1n << 63n;
const CR4_PCIDE = 1n << 17n;
const LOW = 0xffffffffn;

type TrapKind = 'cr' | 'msr' | 'xsetbv';
type InstructionTrap = Extract<Trap, { kind: TrapKind }>;

/** What the instruction at a trap point is about to write. */
interface Write {
  readonly length: number;
  readonly stop: Extract<Stop, { kind: TrapKind }>;
  /** The registers that make the instruction write `value` instead. */
  source(value: bigint): Partial<Record<GeneralRegister, bigint>>;
}

interface Opcode {
  readonly bytes: readonly [number, number];
  /** By the byte after the opcode: whether it writes one of the registers `selected`. */
  accepts(next: number, selected: ReadonlySet<number>): boolean;
}

const OPCODES: Readonly<Record<TrapKind, Opcode>> = {
  // mov crN, reg; the two upper bits of ModRM do not matter.
  cr: { bytes: [0x0f, 0x22], accepts: (modrm, selected) => selected.has((modrm >> 3) & 7) },
  msr: { bytes: [0x0f, 0x30], accepts: () => true },
  xsetbv: { bytes: [0x0f, 0x01], accepts: (modrm) => modrm === 0xd1 },
};

/**
 * Intercepts privileged instructions of the kernel without knowing its symbols: a trap point on every place in
 * the kernel's code where such an instruction may start. Under TCG a point fires only where an instruction does start,
 * and before it has any effect, so that the other places cost nothing but time. Code that the kernel loads after
 * arming is not covered until the next arming.
 */
export class InstructionTraps implements TrapPoint {
  readonly order = POINT_ORDER.instruction;
  readonly #control: RunControl;
  readonly #memory: PhysicalMemory;
  readonly #kind: TrapKind;
  readonly #onBorrow: (vcpu: BorrowedVcpu | null) => void;
  /** What is armed, by vCPU: control registers, MSRs, or XCRs. */
  readonly #armed = new Map<number, Set<number>>();
  #points = new Set<bigint>();

  /** `onBorrow`: as that of {@link CpuidReader}. */
  constructor(
    control: RunControl,
    memory: PhysicalMemory,
    kind: TrapKind,
    onBorrow: (vcpu: BorrowedVcpu | null) => void,
  ) {
    this.#control = control;
    this.#memory = memory;
    this.#kind = kind;
    this.#onBorrow = onBorrow;
  }

  async arm(trap: InstructionTrap, gdb: GdbClient): Promise<void> {
    const { index } = trap.vcpu;
    const selected = this.#armed.get(index) ?? new Set();
    this.#armed.set(index, selected.add(selectorOf(trap)));
    await this.#update(index, gdb);
  }

  async disarm(trap: InstructionTrap, gdb: GdbClient): Promise<void> {
    const selected = this.#armed.get(trap.vcpu.index);
    selected?.delete(selectorOf(trap));
    if (selected?.size === 0) this.#armed.delete(trap.vcpu.index);
    await this.#update(trap.vcpu.index, gdb);
  }

  /** Forgets what is armed, with its points. */
  clear(): void {
    this.#armed.clear();
    this.#points.clear();
  }

  async examine(vcpu: StoppedVcpu): Promise<Encounter | undefined> {
    const armed = this.#armed.get(vcpu.index);
    if (armed === undefined) return undefined;
    // Most writes of MSRs are of others than those armed: rcx tells before the whole state is read.
    if (this.#kind === 'msr' && !armed.has(Number((await vcpu.gdb.readRegister(vcpu.index, 'rcx')) & LOW))) {
      return undefined;
    }
    const block = await this.#block(vcpu);
    const write = await this.#decode(vcpu, block);
    if (write === undefined || !armed.has(selectorOf(write.stop)) || write.stop.old === write.stop.new) {
      return undefined;
    }
    return this.#kind === 'xsetbv' ? this.#report(vcpu, write) : this.#intercept(block, write);
  }

  /** The effect waits for the answer. */
  #intercept(block: Uint8Array, write: Write): Encounter {
    return {
      stop: write.stop,
      settle: async (vcpu, answer, registers) => {
        const wanted = new Uint8Array(block);
        if (registers) regsOf(wanted).set(registers);
        if (answer.action === 'continue') return this.#carryOut(vcpu, block, wanted, write, answer);
        await writeChangedRegisters(vcpu.gdb, vcpu.index, regsOf(wanted), regsOf(block));
        if (answer.action === 'refuse') {
          await deliverException(new StoppedMemory(this.#memory, vcpu.gdb), vcpu, wanted, GENERAL_PROTECTION);
        }
        return 'run';
      },
    };
  }

  /** The instruction is executed with `answer.value`, and its source registers are as the tool or the guest want them. */
  async #carryOut(
    vcpu: StoppedVcpu,
    block: Uint8Array,
    wanted: Uint8Array,
    write: Write,
    { value = write.stop.new }: Answer,
  ): Promise<'run' | 'step-over'> {
    const moved = getRegister(wanted, 'rip') !== getRegister(block, 'rip');
    if (value === write.stop.new && !moved) {
      await writeChangedRegisters(vcpu.gdb, vcpu.index, regsOf(wanted), regsOf(block));
      return 'step-over';
    }
    const source = write.source(value);
    const during = new Uint8Array(wanted);
    putRegister(during, 'rip', getRegister(block, 'rip'));
    for (const [name, content] of Object.entries(source))
      putRegister(during, name as GeneralRegister, content);
    const own = (Object.keys(source) as GeneralRegister[]).map(
      (name) => [name, getRegister(wanted, name)] as const,
    );
    const after: (readonly [name: string, value: bigint])[] = [...own];
    if (moved) after.push(['rip', getRegister(wanted, 'rip') + BigInt(write.length)]);
    const rip = getRegister(block, 'rip');
    this.#onBorrow(borrowedVcpu(vcpu.index, own, [rip, rip + BigInt(write.length)]));
    await this.#control.stepAlone(vcpu.index, vcpu.gdb, {
      prepare: () => writeChangedRegisters(vcpu.gdb, vcpu.index, regsOf(during), regsOf(block)),
    });
    await Promise.all(after.map(([name, content]) => vcpu.gdb.writeRegister(vcpu.index, name, content)));
    this.#onBorrow(null);
    return 'run';
  }

  /** xsetbv is reported when it has been executed, and only if it did not fault. */
  async #report(vcpu: StoppedVcpu, write: Write): Promise<Encounter | undefined> {
    await this.#control.stepAlone(vcpu.index, vcpu.gdb);
    if ((await vcpu.state()).xcr0 !== write.stop.new) return undefined;
    const block = await this.#block(vcpu);
    return {
      stop: write.stop,
      async settle({ gdb, index }, _answer, registers) {
        if (registers) await writeChangedRegisters(gdb, index, registers, regsOf(block));
        return 'run';
      },
    };
  }

  async #decode(vcpu: StoppedVcpu, block: Uint8Array): Promise<Write | undefined> {
    const code = new Uint8Array(MAX_INSTRUCTION);
    const rip = getRegister(block, 'rip');
    if (!(await readVirtual(this.#memory, pagingOf(block), rip, code))) return undefined;
    let at = 0;
    let rex = 0;
    for (; isPrefix(code[at]!); at++) rex = isRex(code[at]!) ? code[at]! : 0;
    const { bytes, accepts } = OPCODES[this.#kind];
    const next = code[at + 2] ?? 0;
    const selected = this.#armed.get(vcpu.index)!;
    if (code[at] !== bytes[0] || code[at + 1] !== bytes[1] || !accepts(next, selected)) return undefined;
    if (this.#kind === 'cr') return decodeCr(block, at + 3, next, rex);
    const index = Number(getRegister(block, 'rcx') & LOW);
    const value = ((getRegister(block, 'rdx') & LOW) << 32n) | (getRegister(block, 'rax') & LOW);
    const source = (other: bigint) => ({ rax: other & LOW, rdx: other >> 32n });
    const state = await vcpu.state();
    if (this.#kind === 'xsetbv') {
      return { length: at + 3, stop: { kind: 'xsetbv', xcr: index, old: state.xcr0, new: value }, source };
    }
    const old = state.msr(index);
    if (old === undefined) return undefined;
    return { length: at + 2, stop: { kind: 'msr', msr: index, old, new: value }, source };
  }

  /** Sets the points for what is armed on any vCPU, in the kernel's code as it is now. */
  async #update(vcpu: number, gdb: GdbClient): Promise<void> {
    const selected = new Set([...this.#armed.values()].flatMap((registers) => [...registers]));
    let wanted = new Set<bigint>();
    if (selected.size > 0) {
      const paging = await kernelPaging(this.#memory, await this.#block(this.#control.stopped(vcpu, gdb)));
      const { bytes, accepts } = OPCODES[this.#kind];
      wanted = await findOpcode(this.#memory, paging, bytes, (next) => accepts(next, selected));
    }
    const gone = [...this.#points].filter((gva) => !wanted.has(gva));
    const fresh = [...wanted].filter((gva) => !this.#points.has(gva));
    this.#points = wanted;
    await Promise.all([
      ...gone.map((gva) => this.#control.points.remove(gdb, gva, this)),
      ...fresh.map((gva) => this.#control.points.add(gdb, gva, this)),
    ]);
  }

  async #block(vcpu: StoppedVcpu): Promise<Uint8Array> {
    const block = new Uint8Array(STATE_SIZE);
    (await vcpu.state()).writeBlock(block);
    return block;
  }
}

function selectorOf(what: InstructionTrap | Write['stop']): number {
  if (what.kind === 'cr') return what.cr;
  return what.kind === 'msr' ? what.msr : 0;
}

function decodeCr(block: Uint8Array, length: number, modrm: number, rex: number): Write | undefined {
  if (rex & 4) return undefined; // CR8 and above
  const cr = ((modrm >> 3) & 7) as InterceptedCr;
  const register = NUMBERED_REGISTERS[(modrm & 7) | (rex & 1 ? 8 : 0)]!;
  const operand = getRegister(block, register);
  // With PCIDs the top bit of a CR3 write is an instruction to the TLB and not stored.
  const pcid = cr === 3 && (getRegister(block, 'cr4') & CR4_PCIDE) !== 0n;
  const kept = pcid ? operand & CR3_NO_FLUSH : 0n;
  const old = getRegister(block, cr === 0 ? 'cr0' : cr === 3 ? 'cr3' : 'cr4');
  return {
    length,
    stop: { kind: 'cr', cr, old, new: operand & ~kept },
    source: (value) => ({ [register]: value | kept }),
  };
}

import { VECTOR } from '../../../abi/x86.ts';
import { goOn } from './branch.ts';
import { CR0, CR4, FLAG } from './constants.ts';
import { checkDescriptorTrap } from './control.ts';
import type { Cpu } from './cpu.ts';
import { cpuidLeaf } from './cpuid.ts';
import { loadDataSegment, loadLdt, loadTaskRegister } from './descriptors.ts';
import { getFlags, setArithmeticFlags } from './flags.ts';
import { read16, read32, read64, write16, write32, write64 } from './mmu.ts';
import { MSR } from './msr.ts';
import type { Op, Run } from './op.ts';
import { address, advanceAddress, load16 } from './operand.ts';
import { translate } from './paging.ts';
import { raise, requireRing0, undefinedOpcode } from './raise.ts';
import type { TableRegister } from './segment.ts';
import { ARMED, ATTENTION, FAULT, STOP } from './signals.ts';
import { CODE_BASE, FS_BASE, GS_BASE, LDTR, RAX, RBX, RCX, RDI, RDX, RSI, SS, TR } from './slots.ts';
import { hiddenFromUser } from './stack.ts';
import { isCanonical } from './wide.ts';

/* Instructions of the system: interrupts, ports, descriptor tables, CPUID, hypercalls. */

/** What a breakpoint stop carries when its address has no translation: all ones. */
const NO_GPA = 2 ** 64;

/** INT3. The stop comes first; without a trap it raises #BP with rip behind it. */
export const int3: Run = (c, op) => {
  if ((c.armed & ARMED.breakpoint) !== 0) {
    const lo = (c.r[CODE_BASE]! + op.start) | 0;
    const gpa = translate(c, lo, c.r[CODE_BASE + 1]!);
    c.stops.breakpoint.gpa = gpa < 0 ? NO_GPA : gpa;
    c.stop = c.stops.breakpoint;
    throw STOP;
  }
  softwareInterrupt(c, VECTOR.BP, 1);
};

/** INT n: vector in op.imm. */
export const int: Run = (c, op) => softwareInterrupt(c, op.imm, op.next - op.start);

function softwareInterrupt(c: Cpu, vector: number, length: number): never {
  c.fault.set(vector, false, 0);
  c.fault.softwareLength = length;
  throw FAULT;
}

export const halt: Run = (c, op) => {
  requireRing0(c);
  goOn(c, op);
  c.attention |= ATTENTION.halt;
};

export const cli: Run = (c) => {
  requireIopl(c);
  c.setSystemFlags(c.systemFlags & ~FLAG.IF);
};

export const sti: Run = (c) => {
  requireIopl(c);
  if ((c.systemFlags & FLAG.IF) === 0) c.attention |= ATTENTION.shadow;
  c.setSystemFlags(c.systemFlags | FLAG.IF);
};

export const cld: Run = (c) => {
  c.systemFlags &= ~FLAG.DF;
};

export const std: Run = (c) => {
  c.systemFlags |= FLAG.DF;
};

export const sahf: Run = (c) => {
  const kept = getFlags(c) & FLAG.OF;
  setArithmeticFlags(c, kept | c.r8[4 * RAX + 1]!);
};

export const lahf: Run = (c) => {
  c.r8[4 * RAX + 1] = getFlags(c);
};

/** There is no permission bitmap: ring 3 needs IOPL 3. */
function requireIopl(c: Cpu): void {
  if (c.cpl > ((c.systemFlags >> 12) & 3)) raise(c, VECTOR.GP, 0);
}

/** IN and OUT: op.src is the size; the port is op.imm, or dx when that is negative. */
export const portIn: Run = (c, op) => {
  requireIopl(c);
  const value = c.ports.read(op.imm < 0 ? c.r16[2 * RDX]! : op.imm, op.src);
  if (op.src === 1) c.r8[4 * RAX] = value;
  else if (op.src === 2) c.r16[2 * RAX] = value;
  else {
    c.r[RAX] = value;
    c.r[RAX + 1] = 0;
  }
};

export const portOut: Run = (c, op) => {
  requireIopl(c);
  const value = op.src === 1 ? c.r8[4 * RAX]! : op.src === 2 ? c.r16[2 * RAX]! : c.r[RAX]! >>> 0;
  c.ports.write(op.imm < 0 ? c.r16[2 * RDX]! : op.imm, op.src, value);
};

/** A processor without the trap fills the registers; with it, the stop's handler has done so. */
export const cpuid: Run = (c, op) => {
  const { r } = c;
  const leaf = r[RAX]! >>> 0;
  const subleaf = r[RCX]! >>> 0;
  if ((c.armed & ARMED.cpuid) !== 0) {
    const stop = c.stops.cpuid;
    stop.leaf = leaf;
    stop.subleaf = subleaf;
    stop.length = op.next - op.start;
    c.stop = stop;
    throw STOP;
  }
  const row = cpuidLeaf(c, leaf, subleaf);
  r[RAX] = row?.eax ?? 0;
  r[RBX] = row?.ebx ?? 0;
  r[RCX] = row?.ecx ?? 0;
  r[RDX] = row?.edx ?? 0;
  r[RAX + 1] = r[RBX + 1] = r[RCX + 1] = r[RDX + 1] = 0;
};

/** The hypercall that introspection knows, as far as registers tell. */
const HYPERCALL = { number: 34, argument: 24 } as const;
/** What any other hypercall returns: -KVM_ENOSYS. */
const NO_HYPERCALL = -1000;

function isIntrospectionCall(c: Cpu): boolean {
  const { r } = c;
  if (r[RAX] !== HYPERCALL.number) return false;
  if (!c.mode64) return r[RBX] === HYPERCALL.argument && r[RCX] === 0;
  const high = r[RAX + 1]! | r[RDI + 1]! | r[RSI + 1]!;
  return high === 0 && r[RDI] === HYPERCALL.argument && r[RSI] === 0;
}

/** VMCALL and VMMCALL, from any ring. */
export const hypercall: Run = (c) => {
  if ((c.armed & ARMED.hypercall) !== 0 && isIntrospectionCall(c)) {
    c.stop = c.stops.hypercall;
    throw STOP;
  }
  c.r[RAX] = NO_HYPERCALL;
  c.r[RAX + 1] = c.mode64 ? -1 : 0;
};

/** Finishes a hypercall that was let go on. */
export function completeHypercall(c: Cpu): void {
  c.r[RAX] = 0;
  c.r[RAX + 1] = 0;
}

/** VMFUNC leaf 0: switches to a view that was made visible; anything else is #UD. */
export const vmfunc: Run = (c) => {
  const view = c.r[RAX] === 0 ? c.views.get(c.r[RCX]! >>> 0) : undefined;
  if (!view?.visible) undefinedOpcode(c);
  c.setView(view);
};

function storeTable(c: Cpu, op: Op, table: TableRegister, name: 'gdtr' | 'idtr'): void {
  if (hiddenFromUser(c)) raise(c, VECTOR.GP, 0);
  checkDescriptorTrap(c, name, false);
  address(c, op);
  write16(c, c.eaLo, c.eaHi, table.limit);
  advanceAddress(c, 2);
  if (c.mode64) write64(c, c.eaLo, c.eaHi, table.lo, table.hi);
  else write32(c, c.eaLo, c.eaHi, table.lo);
}

function loadTable(c: Cpu, op: Op, table: TableRegister, name: 'gdtr' | 'idtr'): void {
  requireRing0(c);
  checkDescriptorTrap(c, name, true);
  address(c, op);
  const limit = read16(c, c.eaLo, c.eaHi);
  advanceAddress(c, 2);
  const lo = c.mode64 ? read64(c, c.eaLo, c.eaHi) : read32(c, c.eaLo, c.eaHi);
  const hi = c.mode64 ? c.hi : 0;
  if (!isCanonical(hi)) raise(c, VECTOR.GP, 0);
  table.set(lo, hi, limit);
  c.systemEpoch++;
}

export const sgdt: Run = (c, op) => storeTable(c, op, c.gdtr, 'gdtr');
export const sidt: Run = (c, op) => storeTable(c, op, c.idtr, 'idtr');
export const lgdt: Run = (c, op) => loadTable(c, op, c.gdtr, 'gdtr');
export const lidt: Run = (c, op) => loadTable(c, op, c.idtr, 'idtr');

/** An instruction that stores a 16-bit value, zero-extended in a register of more bits (op.imm is the size). */
function storeWord(value: (c: Cpu) => number): { register: Run; memory: Run } {
  return {
    register: (c, op) => {
      const word = value(c);
      if (op.imm === 2) c.r16[2 * op.dst] = word;
      else {
        c.r[op.dst] = word;
        c.r[op.dst + 1] = 0;
      }
    },
    memory: (c, op) => {
      const word = value(c);
      address(c, op);
      write16(c, c.eaLo, c.eaHi, word);
    },
  };
}

function selectorOf(segment: number, table: 'ldtr' | 'tr'): (c: Cpu) => number {
  return (c) => {
    if (hiddenFromUser(c)) raise(c, VECTOR.GP, 0);
    checkDescriptorTrap(c, table, false);
    return c.segments[segment]!.selector;
  };
}

export const SLDT = storeWord(selectorOf(LDTR, 'ldtr'));
export const STR = storeWord(selectorOf(TR, 'tr'));
export const SMSW = storeWord((c) => {
  if (hiddenFromUser(c)) raise(c, VECTOR.GP, 0);
  return c.cr0 & 0xffff;
});

/** An instruction that takes a 16-bit operand from a register (op.dst) or memory. */
export function takeWord(take: (c: Cpu, value: number) => void): { register: Run; memory: Run } {
  return {
    register: (c, op) => take(c, c.r[op.dst]! & 0xffff),
    memory: (c, op) => take(c, load16(c, op)),
  };
}

/** LLDT and LTR report themselves before they look at their operand. */
function loadSelector(
  table: 'ldtr' | 'tr',
  load: (c: Cpu, selector: number) => void,
): { register: Run; memory: Run } {
  const check = (c: Cpu) => {
    requireRing0(c);
    checkDescriptorTrap(c, table, true);
  };
  return {
    register: (c, op) => {
      check(c);
      load(c, c.r[op.dst]! & 0xffff);
    },
    memory: (c, op) => {
      check(c);
      load(c, load16(c, op));
    },
  };
}

export const LLDT = loadSelector('ldtr', loadLdt);
export const LTR = loadSelector('tr', loadTaskRegister);

/** MOV to a segment register, whose number is op.imm. A load of ss holds interrupts off for one instruction. */
export const MOV_TO_SEGMENT = {
  register: ((c, op) => loadSegment(c, op.imm, c.r[op.dst]! & 0xffff)) as Run,
  memory: ((c, op) => loadSegment(c, op.imm, load16(c, op))) as Run,
};

function loadSegment(c: Cpu, segment: number, selector: number): void {
  loadDataSegment(c, segment, selector);
  if (segment === SS) c.attention |= ATTENTION.shadow;
}

/** MOV from each segment register. */
export const MOV_FROM_SEGMENT = Array.from({ length: 6 }, (_, segment) =>
  storeWord((c) => c.segments[segment]!.selector),
);

export const invlpg: Run = (c) => {
  requireRing0(c);
  c.flush();
};

export const swapgs: Run = (c) => {
  requireRing0(c);
  const { r, msrs } = c;
  const lo = r[GS_BASE]!;
  const hi = r[GS_BASE + 1]!;
  r[GS_BASE] = msrs.kernelGsLo;
  r[GS_BASE + 1] = msrs.kernelGsHi;
  msrs.kernelGsLo = lo;
  msrs.kernelGsHi = hi;
  c.systemEpoch++;
};

export const rdtsc: Run = (c) => {
  c.r[RAX] = c.clock.tscLow();
  c.r[RDX] = c.clock.tscHigh();
  c.r[RAX + 1] = c.r[RDX + 1] = 0;
};

export const rdtscp: Run = (c, op) => {
  rdtsc(c, op);
  c.r[RCX] = c.msrs.read(MSR.TSC_AUX)!;
  c.r[RCX + 1] = 0;
};

/** RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE: by bit 1 of op.imm a write, by bit 0 of gs; op.src is the size. */
export const segmentBase: Run = (c, op) => {
  if ((c.cr4 & CR4.FSGSBASE) === 0) undefinedOpcode(c);
  const base = (op.imm & 1) !== 0 ? GS_BASE : FS_BASE;
  const wide = op.src === 8;
  if ((op.imm & 2) === 0) {
    c.r[op.dst + 1] = wide ? c.r[base + 1]! : 0;
    c.r[op.dst] = c.r[base]!;
    return;
  }
  const hi = wide ? c.r[op.dst + 1]! : 0;
  if (!isCanonical(hi)) raise(c, VECTOR.GP, 0);
  c.r[base] = c.r[op.dst]!;
  c.r[base + 1] = hi;
  c.systemEpoch++;
};

/** FNINIT, the one x87 instruction that kernels need to start with. */
export const fninit: Run = (c) => {
  if ((c.cr0 & (CR0.EM | CR0.TS)) !== 0) raise(c, VECTOR.NM);
  c.xsave.fill(0, 0, 24);
  c.xsaveData.setUint16(0, 0x37f, true);
};

/** Instructions that need ring 0 and have nothing to do here: INVD, WBINVD. */
export const privilegedNothing: Run = (c) => requireRing0(c);

export const nothing: Run = () => {};

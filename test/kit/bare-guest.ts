import { putU64 } from '../../src/abi/bytes.ts';
import { CR0, CR4, EFER } from '../../src/drivers/embedded/cpu/constants.ts';
import type { Cpu } from '../../src/drivers/embedded/cpu/cpu.ts';
import { setFlags } from '../../src/drivers/embedded/cpu/flags.ts';
import { CS, DS, ES, SEGMENT_BASE, SS, TR } from '../../src/drivers/embedded/cpu/slots.ts';
import { highHalf, join64, lowHalf } from '../../src/drivers/embedded/cpu/wide.ts';
import { EmbeddedMachine, type EmbeddedMachineOptions } from '../../src/drivers/embedded/index.ts';

/** Where things are in a bare guest, physical and virtual alike. */
export const BARE = {
  pml4: 0x1000,
  pageTable: 0x4000,
  gdt: 0x5000,
  idt: 0x6000,
  tss: 0x7000,
  /** The handler of vector n, a HLT, is at `handlers + 16 × n`. */
  handlers: 0x8000,
  code: 0x10000,
  stack: 0x20000,
  kernelStack: 0x28000,
  data: 0x30000,
} as const;

export const SELECTOR = {
  kernelCode: 0x08,
  kernelData: 0x10,
  userData: 0x1b,
  userCode: 0x23,
  tss: 0x28,
} as const;

const REGISTERS = ['rax', 'rcx', 'rdx', 'rbx', 'rsp', 'rbp', 'rsi', 'rdi'] as const;
export type RegisterName = (typeof REGISTERS)[number] | `r${8 | 9 | 10 | 11 | 12 | 13 | 14 | 15}`;

function slotOf(name: RegisterName): number {
  const number = (REGISTERS as readonly string[]).indexOf(name);
  return 2 * (number >= 0 ? number : Number(name.slice(1)));
}

/**
 * A machine in 64-bit ring 0 without any kernel: the first 2 MiB are mapped one to one, for ring 3 too, and every
 * vector has a handler that halts. For code given as bytes.
 */
export class BareGuest {
  readonly machine: EmbeddedMachine;

  constructor(code: Uint8Array | string, options: Partial<EmbeddedMachineOptions> = {}) {
    const bytes = typeof code === 'string' ? assemble(code) : code;
    this.machine = new EmbeddedMachine({
      image: { bytes, address: BARE.code, entry: BARE.code },
      memory: 2 * 1024 * 1024,
      clock: 'instructions',
      ...options,
    });
    this.#tables();
    for (const { cpu, index } of this.machine.vcpus) this.#longMode(cpu, BARE.stack - 0x1000 * index);
  }

  get cpu(): Cpu {
    return this.machine.vcpus[0]!.cpu;
  }

  get rip(): bigint {
    return join64(this.cpu.ripLo, this.cpu.ripHi);
  }

  set rip(value: bigint) {
    this.cpu.ripLo = lowHalf(value);
    this.cpu.ripHi = highHalf(value);
  }

  get(register: RegisterName): bigint {
    const at = slotOf(register);
    return join64(this.cpu.r[at]!, this.cpu.r[at + 1]!);
  }

  set(register: RegisterName, value: bigint): void {
    const at = slotOf(register);
    this.cpu.r[at] = lowHalf(value);
    this.cpu.r[at + 1] = highHalf(value);
  }

  /** Which vector's handler the processor is in, or -1: it halts there with rip behind the HLT. */
  get vector(): number {
    const offset = Number(this.rip) - 1 - BARE.handlers;
    return offset >= 0 && offset < 4096 && offset % 16 === 0 ? offset / 16 : -1;
  }

  /** Writes code or data. */
  write(at: number, bytes: Uint8Array | string): void {
    this.machine.memory.write(at, typeof bytes === 'string' ? assemble(bytes) : bytes);
  }

  /** Sets bits of the page-table entry of a page; `clear` takes bits away. */
  page(address: number, set: bigint, clear = 0n): void {
    const at = BARE.pageTable + (address >>> 12) * 8;
    const entry = this.machine.memory.data.getBigUint64(at, true);
    this.machine.memory.data.setBigUint64(at, (entry & ~clear) | set, true);
    this.machine.views.flush();
  }

  /** Goes to ring 3, as if it had been there already. */
  enterRing3(): void {
    const { cpu } = this;
    cpu.segments[CS]!.setFlat(SELECTOR.userCode, 11, 3, true);
    for (const segment of [SS, DS, ES]) cpu.segments[segment]!.setFlat(SELECTOR.userData, 3, 3, false);
    cpu.setCpl(3);
    cpu.updateMode();
  }

  #tables(): void {
    const { memory } = this.machine;
    const put = (at: number, value: bigint) => {
      const bytes = new Uint8Array(8);
      putU64(bytes, 0, value);
      memory.write(at, bytes);
    };
    put(BARE.pml4, 0x2007n);
    put(0x2000, 0x3007n);
    put(0x3000, BigInt(BARE.pageTable) | 7n);
    for (let i = 0; i < 512; i++) put(BARE.pageTable + i * 8, (BigInt(i) << 12n) | 7n);
    put(BARE.gdt + 0x08, 0x00af9b000000ffffn);
    put(BARE.gdt + 0x10, 0x00cf93000000ffffn);
    put(BARE.gdt + 0x18, 0x00cff3000000ffffn);
    put(BARE.gdt + 0x20, 0x00affb000000ffffn);
    put(BARE.gdt + 0x28, 0x0000890000000067n | (BigInt(BARE.tss) << 16n));
    for (let vector = 0; vector < 256; vector++) {
      const handler = BigInt(BARE.handlers + 16 * vector);
      put(BARE.idt + 16 * vector, (handler & 0xffffn) | (0x08n << 16n) | (0x8e00n << 32n));
      memory.write(Number(handler), new Uint8Array([0xf4]));
    }
    memory.data.setUint8(BARE.idt + 16 * 3 + 5, 0xee);
    put(BARE.tss + 4, BigInt(BARE.kernelStack));
    put(BARE.tss + 36, BigInt(BARE.kernelStack - 0x1000));
  }

  #longMode(cpu: Cpu, stack: number): void {
    cpu.cr3Lo = BARE.pml4;
    cpu.cr4 = CR4.PAE | CR4.OSFXSR | CR4.OSXSAVE;
    cpu.cr0 = CR0.PE | CR0.PG | CR0.ET | CR0.NE | CR0.WP;
    cpu.efer = EFER.LME | EFER.LMA | EFER.NXE | EFER.SCE;
    cpu.gdtr.set(BARE.gdt, 0, 0x37);
    cpu.idtr.set(BARE.idt, 0, 0xfff);
    cpu.segments[CS]!.setFlat(SELECTOR.kernelCode, 11, 0, true);
    for (const segment of [SS, DS, ES]) cpu.segments[segment]!.setFlat(SELECTOR.kernelData, 3, 0, false);
    const task = cpu.segments[TR]!;
    task.setAttributes(0x8b00);
    task.selector = SELECTOR.tss;
    task.limit = 0x67;
    cpu.r[SEGMENT_BASE + 2 * TR] = BARE.tss;
    cpu.r[8] = stack;
    cpu.ripLo = BARE.code;
    setFlags(cpu, 2);
    cpu.updateMode();
    cpu.flush();
  }
}

/** Bytes from hexadecimal text; everything from `;` or `#` to the end of a line is a comment. */
export function assemble(text: string): Uint8Array {
  const digits = text.replace(/[;#].*$/gm, '').replace(/\s+/g, '');
  return new Uint8Array(Buffer.from(digits, 'hex'));
}

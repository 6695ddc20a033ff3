import { getU16, getU32, getU64, putU16, putU32, putU64 } from '../../abi/bytes.ts';
import {
  type ControlRegister,
  type GeneralRegister,
  getRegister,
  putMode,
  putRegister,
  SREGS_OFFSET,
  STATE_SIZE,
} from '../../abi/state.ts';
import { CR0_PG, CR4_PAE, kvmSregs } from '../../abi/x86.ts';

/*
 * The note that QEMU writes for each vCPU (target/i386/arch_dump.c): general registers, segments, control registers
 * and the kernel's GS base. Not among them are EFER, which follows from the rest, and the other MSRs.
 */

export const QEMU_NOTE_SIZE = 8 + 18 * 8 + 10 * 24 + 5 * 8 + 8;

const REGISTERS: readonly GeneralRegister[] = [
  'rax',
  'rbx',
  'rcx',
  'rdx',
  'rsi',
  'rdi',
  'rsp',
  'rbp',
  'r8',
  'r9',
  'r10',
  'r11',
  'r12',
  'r13',
  'r14',
  'r15',
  'rip',
  'rflags',
];
const SEGMENTS = ['cs', 'ds', 'es', 'fs', 'gs', 'ss', 'ldt', 'tr'] as const;
const TABLES = ['gdt', 'idt'] as const;
const SEGMENTS_AT = 8 + 18 * 8;
const TABLES_AT = SEGMENTS_AT + 8 * 24;
const CONTROL_AT = TABLES_AT + 2 * 24;
const GS_BASE_AT = CONTROL_AT + 5 * 8;

/** SCE, LME, LMA, NXE: what a 64-bit kernel runs with. */
const LONG_MODE = 0xd01n;

/** The state block of a vCPU from its note; undefined when that is too short or of another version. */
export function stateOfNote(note: Uint8Array): Uint8Array | undefined {
  if (note.length < QEMU_NOTE_SIZE || getU32(note, 0) !== 1) return undefined;
  const state = new Uint8Array(STATE_SIZE);
  REGISTERS.forEach((name, i) => {
    putRegister(state, name, getU64(note, 8 + 8 * i));
  });
  SEGMENTS.forEach((name, i) => {
    putSegment(state, SREGS_OFFSET + kvmSregs.offsetOf(name), note, SEGMENTS_AT + 24 * i);
  });
  TABLES.forEach((name, i) => {
    const at = SREGS_OFFSET + kvmSregs.offsetOf(name);
    putU64(state, at, getU64(note, TABLES_AT + 24 * i + 16));
    putU16(state, at + 8, getU32(note, TABLES_AT + 24 * i + 4));
  });
  const control = (index: number) => getU64(note, CONTROL_AT + 8 * index);
  putRegister(state, 'cr0', control(0));
  putRegister(state, 'cr2', control(2));
  putRegister(state, 'cr3', control(3));
  putRegister(state, 'cr4', control(4));
  const isLong = (control(0) & CR0_PG) !== 0n && (control(4) & CR4_PAE) !== 0n;
  putRegister(state, 'efer', isLong ? LONG_MODE : 0n);
  // shadow_gs is the last of the MSRs, which end the block.
  putU64(state, STATE_SIZE - 8, getU64(note, GS_BASE_AT));
  putMode(state);
  return state;
}

/** Descriptor flags as QEMU keeps them: the high half of a descriptor. */
const FLAG = { type: 8, s: 12, dpl: 13, present: 15, avl: 20, l: 21, db: 22, g: 23 } as const;

function putSegment(state: Uint8Array, at: number, note: Uint8Array, from: number): void {
  const flags = getU32(note, from + 8);
  putU64(state, at, getU64(note, from + 16));
  putU32(state, at + 8, getU32(note, from + 4));
  putU16(state, at + 12, getU32(note, from));
  const bits = [
    (flags >>> FLAG.type) & 15,
    (flags >>> FLAG.present) & 1,
    (flags >>> FLAG.dpl) & 3,
    (flags >>> FLAG.db) & 1,
    (flags >>> FLAG.s) & 1,
    (flags >>> FLAG.l) & 1,
    (flags >>> FLAG.g) & 1,
    (flags >>> FLAG.avl) & 1,
    (flags >>> FLAG.present) & 1 ? 0 : 1,
  ];
  bits.forEach((bit, i) => {
    state[at + 14 + i] = bit;
  });
}

/** The note for a vCPU in this state. */
export function noteOfState(state: Uint8Array): Uint8Array {
  const note = new Uint8Array(QEMU_NOTE_SIZE);
  putU32(note, 0, 1);
  putU32(note, 4, QEMU_NOTE_SIZE);
  const register = (name: GeneralRegister | ControlRegister) => getRegister(state, name);
  REGISTERS.forEach((name, i) => {
    putU64(note, 8 + 8 * i, register(name));
  });
  SEGMENTS.forEach((name, i) => {
    takeSegment(note, SEGMENTS_AT + 24 * i, state, SREGS_OFFSET + kvmSregs.offsetOf(name));
  });
  TABLES.forEach((name, i) => {
    const at = SREGS_OFFSET + kvmSregs.offsetOf(name);
    putU64(note, TABLES_AT + 24 * i + 16, getU64(state, at));
    putU32(note, TABLES_AT + 24 * i + 4, getU16(state, at + 8));
  });
  (['cr0', undefined, 'cr2', 'cr3', 'cr4'] as const).forEach((name, i) => {
    if (name !== undefined) putU64(note, CONTROL_AT + 8 * i, register(name));
  });
  putU64(note, GS_BASE_AT, getU64(state, STATE_SIZE - 8));
  return note;
}

function takeSegment(note: Uint8Array, into: number, state: Uint8Array, at: number): void {
  putU32(note, into, getU16(state, at + 12));
  putU32(note, into + 4, getU32(state, at + 8));
  const [type, present, dpl, db, s, l, g, avl] = state.subarray(at + 14, at + 22);
  const flags =
    (type! << FLAG.type) |
    (s! << FLAG.s) |
    (dpl! << FLAG.dpl) |
    (present! << FLAG.present) |
    (avl! << FLAG.avl) |
    (l! << FLAG.l) |
    (db! << FLAG.db) |
    (g! << FLAG.g);
  putU32(note, into + 8, flags);
  putU64(note, into + 16, getU64(state, at));
}

/** `struct elf_prstatus` of x86-64: its size, and where the process id and the registers are (linux/elfcore.h). */
const PRSTATUS = { size: 336, pid: 32, registers: 112 } as const;

type StateReader = (state: Uint8Array) => bigint;
const segmentField =
  (name: (typeof SEGMENTS)[number], read: (state: Uint8Array, at: number) => bigint): StateReader =>
  (state) =>
    read(state, SREGS_OFFSET + kvmSregs.offsetOf(name));
const selector = (name: (typeof SEGMENTS)[number]) =>
  segmentField(name, (state, at) => BigInt(getU16(state, at + 12)));

/** `struct user_regs_struct`, in its order; the register before rip is orig_rax, which a vCPU does not have. */
const USER_REGISTERS: readonly (GeneralRegister | StateReader)[] = [
  ...(['r15', 'r14', 'r13', 'r12', 'rbp', 'rbx', 'r11', 'r10'] as const),
  ...(['r9', 'r8', 'rax', 'rcx', 'rdx', 'rsi', 'rdi'] as const),
  () => 0n,
  'rip',
  selector('cs'),
  'rflags',
  'rsp',
  selector('ss'),
  segmentField('fs', getU64),
  segmentField('gs', getU64),
  ...(['ds', 'es', 'fs', 'gs'] as const).map(selector),
];

/** The note that debuggers take for a thread: a vCPU in this state. `id`: from 1 on, as QEMU counts. */
export function prstatusOfState(state: Uint8Array, id: number): Uint8Array {
  const note = new Uint8Array(PRSTATUS.size);
  putU32(note, PRSTATUS.pid, id);
  USER_REGISTERS.forEach((register, i) => {
    const value = typeof register === 'string' ? getRegister(state, register) : register(state);
    putU64(note, PRSTATUS.registers + 8 * i, value);
  });
  return note;
}

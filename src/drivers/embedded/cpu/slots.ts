/*
 * Where things are in Cpu.r. A 64-bit value is two int32 halves, low first; the operand of an instruction is an
 * index into this array, so that an absent base, the instruction pointer of RIP-relative addressing and the
 * segment bases are read like any other register.
 */

/** General registers in instruction encoding order: rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8–r15. */
export const RAX = 0;
export const RCX = 2;
export const RDX = 4;
export const RBX = 6;
export const RSP = 8;
export const RBP = 10;
export const RSI = 12;
export const RDI = 14;
export const R11 = 22;

/** Always zero: stands for an operand part that is absent. */
export const ZERO = 32;
/** Linear address of the page that the current block of code is in. */
export const CODE_BASE = 34;
/** Bases of es, cs, ss, ds, fs, gs, ldtr and tr. */
export const SEGMENT_BASE = 36;
export const SLOTS = 52;

/** Segment registers by encoding, then the two that only system instructions name. */
export const ES = 0;
export const CS = 1;
export const SS = 2;
export const DS = 3;
export const FS = 4;
export const GS = 5;
export const LDTR = 6;
export const TR = 7;

export const FS_BASE = SEGMENT_BASE + 2 * FS;
export const GS_BASE = SEGMENT_BASE + 2 * GS;

import { VECTOR } from '../../../abi/x86.ts';
import { CR0, CR4 } from './constants.ts';
import type { Cpu } from './cpu.ts';
import { read32, read64, read128, write32, write64, write128 } from './mmu.ts';
import type { Op, Run } from './op.ts';
import { address, load32 } from './operand.ts';
import { raise, undefinedOpcode } from './raise.ts';
import { RAX } from './slots.ts';
import {
  FXSAVE_SIZE,
  MXCSR,
  MXCSR_KNOWN,
  MXCSR_MASK,
  XMM0,
  XSAVE_AVX_OFFSET,
  XSAVE_AVX_SIZE,
  XSTATE,
} from './xsave.ts';

/*
 * The vector registers, as far as moving and clearing them and saving their state goes: enough for a kernel to
 * have extended state. op.dst and op.src are register numbers. Everything else of SSE raises #UD.
 */

function requireSse(c: Cpu): void {
  if ((c.cr0 & CR0.EM) !== 0 || (c.cr4 & CR4.OSFXSR) === 0) undefinedOpcode(c);
  if ((c.cr0 & CR0.TS) !== 0) raise(c, VECTOR.NM);
}

const xmm = (register: number) => XMM0 + 16 * register;

function alignedAddress(c: Cpu, op: Op, alignment: number): void {
  address(c, op);
  if ((c.eaLo & (alignment - 1)) !== 0) raise(c, VECTOR.GP, 0);
}

function setXmm(c: Cpu, register: number, from: DataView, at: number): void {
  for (let i = 0; i < 16; i += 4) c.xsaveData.setInt32(xmm(register) + i, from.getInt32(at + i, true), true);
}

/** MOVUPS, MOVAPS, MOVDQU, MOVDQA between registers. */
export const movXmm: Run = (c, op) => {
  requireSse(c);
  setXmm(c, op.dst, c.xsaveData, xmm(op.src));
};

/** Loads 16 bytes; with an alignment of 16 the address must be aligned. */
export function loadXmm(alignment: number): Run {
  return (c, op) => {
    requireSse(c);
    alignedAddress(c, op, alignment);
    read128(c, c.eaLo, c.eaHi);
    setXmm(c, op.dst, c.bounce, 0);
  };
}

export function storeXmm(alignment: number): Run {
  return (c, op) => {
    requireSse(c);
    alignedAddress(c, op, alignment);
    for (let i = 0; i < 16; i += 4) c.bounce.setInt32(i, c.xsaveData.getInt32(xmm(op.src) + i, true), true);
    write128(c, c.eaLo, c.eaHi);
  };
}

/** XORPS, XORPD, PXOR. */
export const xorXmm: Run = (c, op) => {
  requireSse(c);
  for (let i = 0; i < 16; i += 4) {
    const value = c.xsaveData.getInt32(xmm(op.dst) + i, true) ^ c.xsaveData.getInt32(xmm(op.src) + i, true);
    c.xsaveData.setInt32(xmm(op.dst) + i, value, true);
  }
};

export const xorXmmMemory: Run = (c, op) => {
  requireSse(c);
  alignedAddress(c, op, 16);
  read128(c, c.eaLo, c.eaHi);
  for (let i = 0; i < 16; i += 4) {
    const at = xmm(op.dst) + i;
    c.xsaveData.setInt32(at, c.xsaveData.getInt32(at, true) ^ c.bounce.getInt32(i, true), true);
  }
};

function setLow(c: Cpu, register: number, lo: number, hi: number): void {
  c.xsaveData.setInt32(xmm(register), lo, true);
  c.xsaveData.setInt32(xmm(register) + 4, hi, true);
  c.xsaveData.setInt32(xmm(register) + 8, 0, true);
  c.xsaveData.setInt32(xmm(register) + 12, 0, true);
}

/** MOVD and MOVQ to a vector register, from a general one or memory; op.imm is the size, 4 or 8. */
export const movToXmm: Run = (c, op) => {
  requireSse(c);
  setLow(c, op.dst, c.r[op.src]!, op.imm === 8 ? c.r[op.src + 1]! : 0);
};

export const loadLow: Run = (c, op) => {
  requireSse(c);
  address(c, op);
  const lo = op.imm === 8 ? read64(c, c.eaLo, c.eaHi) : read32(c, c.eaLo, c.eaHi);
  setLow(c, op.dst, lo, op.imm === 8 ? c.hi : 0);
};

export const movFromXmm: Run = (c, op) => {
  requireSse(c);
  c.r[op.dst] = c.xsaveData.getInt32(xmm(op.src), true);
  c.r[op.dst + 1] = op.imm === 8 ? c.xsaveData.getInt32(xmm(op.src) + 4, true) : 0;
};

export const storeLow: Run = (c, op) => {
  requireSse(c);
  address(c, op);
  const lo = c.xsaveData.getInt32(xmm(op.src), true);
  if (op.imm === 8) write64(c, c.eaLo, c.eaHi, lo, c.xsaveData.getInt32(xmm(op.src) + 4, true));
  else write32(c, c.eaLo, c.eaHi, lo);
};

/** MOVQ between vector registers. */
export const movLow: Run = (c, op) => {
  requireSse(c);
  setLow(c, op.dst, c.xsaveData.getInt32(xmm(op.src), true), c.xsaveData.getInt32(xmm(op.src) + 4, true));
};

export const ldmxcsr: Run = (c, op) => {
  requireSse(c);
  const value = load32(c, op);
  if ((value & ~MXCSR_KNOWN) !== 0) raise(c, VECTOR.GP, 0);
  c.xsaveData.setInt32(MXCSR, value, true);
};

export const stmxcsr: Run = (c, op) => {
  requireSse(c);
  address(c, op);
  write32(c, c.eaLo, c.eaHi, c.xsaveData.getInt32(MXCSR, true));
};

/** Copies part of the state image to memory at the address `eaLo`/`eaHi` that was computed before. */
function save(c: Cpu, lo: number, hi: number, from: number, to: number): void {
  for (let i = from; i < to; i += 8) {
    write64(c, (lo + i) | 0, hi, c.xsaveData.getInt32(i, true), c.xsaveData.getInt32(i + 4, true));
  }
}

/** Scratch for a state that is being restored, so that a fault halfway changes nothing. */
const incoming = new DataView(new ArrayBuffer(XSAVE_AVX_OFFSET + XSAVE_AVX_SIZE));

function fetch(c: Cpu, lo: number, hi: number, from: number, to: number): void {
  for (let i = from; i < to; i += 8) {
    incoming.setInt32(i, read64(c, (lo + i) | 0, hi), true);
    incoming.setInt32(i + 4, c.hi, true);
  }
}

function take(c: Cpu, from: number, to: number): void {
  for (let i = from; i < to; i += 4) c.xsaveData.setInt32(i, incoming.getInt32(i, true), true);
}

export const fxsave: Run = (c, op) => {
  if ((c.cr0 & (CR0.TS | CR0.EM)) !== 0) raise(c, VECTOR.NM);
  alignedAddress(c, op, 16);
  save(c, c.eaLo, c.eaHi, 0, FXSAVE_SIZE);
};

export const fxrstor: Run = (c, op) => {
  if ((c.cr0 & (CR0.TS | CR0.EM)) !== 0) raise(c, VECTOR.NM);
  alignedAddress(c, op, 16);
  fetch(c, c.eaLo, c.eaHi, 0, FXSAVE_SIZE);
  if ((incoming.getInt32(MXCSR, true) & ~MXCSR_KNOWN) !== 0) raise(c, VECTOR.GP, 0);
  take(c, 0, FXSAVE_SIZE);
  c.xsaveData.setInt32(MXCSR_MASK, MXCSR_KNOWN, true);
};

/** Components that an XSAVE or XRSTOR is about. */
function components(c: Cpu): number {
  if ((c.cr4 & CR4.OSXSAVE) === 0) undefinedOpcode(c);
  if ((c.cr0 & CR0.TS) !== 0) raise(c, VECTOR.NM);
  return c.r[RAX]! & c.xcr0;
}

export const xsave: Run = (c, op) => {
  const wanted = components(c);
  alignedAddress(c, op, 64);
  const { eaLo, eaHi } = c;
  if ((wanted & 1) !== 0) save(c, eaLo, eaHi, 0, MXCSR);
  if ((wanted & 6) !== 0) save(c, eaLo, eaHi, MXCSR, MXCSR + 8);
  if ((wanted & 1) !== 0) save(c, eaLo, eaHi, MXCSR + 8, XMM0);
  if ((wanted & 2) !== 0) save(c, eaLo, eaHi, XMM0, XMM0 + 256);
  if ((wanted & 4) !== 0) save(c, eaLo, eaHi, XSAVE_AVX_OFFSET, XSAVE_AVX_OFFSET + XSAVE_AVX_SIZE);
  const old = read64(c, (eaLo + XSTATE) | 0, eaHi);
  const present = c.xsaveData.getInt32(XSTATE, true) & wanted;
  write64(c, (eaLo + XSTATE) | 0, eaHi, (old & ~wanted) | present, c.hi);
};

export const xrstor: Run = (c, op) => {
  const wanted = components(c);
  alignedAddress(c, op, 64);
  fetch(c, c.eaLo, c.eaHi, 0, XSAVE_AVX_OFFSET + ((wanted & 4) !== 0 ? XSAVE_AVX_SIZE : 0));
  const present = incoming.getInt32(XSTATE, true);
  if ((present & ~c.xcr0) !== 0 || incoming.getInt32(XSTATE + 4, true) !== 0) raise(c, VECTOR.GP, 0);
  if ((incoming.getInt32(MXCSR, true) & ~MXCSR_KNOWN) !== 0 && (wanted & 6) !== 0) raise(c, VECTOR.GP, 0);
  restore(c, wanted, present, 1, 0, MXCSR);
  restore(c, wanted, present, 1, MXCSR + 8, XMM0);
  if ((wanted & 6) !== 0) take(c, MXCSR, MXCSR + 4);
  restore(c, wanted, present, 2, XMM0, XMM0 + 256);
  restore(c, wanted, present, 4, XSAVE_AVX_OFFSET, XSAVE_AVX_OFFSET + XSAVE_AVX_SIZE);
  const state = c.xsaveData.getInt32(XSTATE, true);
  c.xsaveData.setInt32(XSTATE, (state & ~wanted) | (present & wanted), true);
};

/** A wanted component comes from memory when it is there, and is cleared when not. */
function restore(c: Cpu, wanted: number, present: number, component: number, from: number, to: number): void {
  if ((wanted & component) === 0) return;
  if ((present & component) !== 0) take(c, from, to);
  else c.xsave.fill(0, from, to);
  if (component === 1 && from === 0 && (present & 1) === 0) c.xsaveData.setUint16(0, 0x37f, true);
}

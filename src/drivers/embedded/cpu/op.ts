import type { Block, CodeCache, CodePage } from './code.ts';
import type { Cpu } from './cpu.ts';
import { ZERO } from './slots.ts';

/** Executes one decoded instruction. It does all its memory accesses before it changes a register. */
export type Run = (c: Cpu, op: Op) => void;

/** One handler for each operand size: byte, word, doubleword, quadword. */
export interface SizedRun {
  readonly b: Run;
  readonly w: Run;
  readonly d: Run;
  readonly q: Run;
}

/**
 * A decoded instruction. Positions are offsets in the page of code, so that a page that is mapped at
 * several linear addresses is decoded once.
 */
export class Op {
  run: Run;
  /** Offset of the first byte in its page. */
  start = 0;
  /** Offset of the byte after the last one; above 4095 when the instruction reaches the end of the page. */
  next = 0;
  /** True when `run` sets rip itself or the instruction must be the last one of a block. */
  ends = false;
  /** Which operation or condition, for handlers that serve several: ALU, UNARY, SHIFT, a condition of Jcc. */
  kind = 0;
  /** Index into Cpu.r, or r16 or r8 for operands of that size. */
  dst = 0;
  src = 0;
  /** Memory operand: r[base] + (r[index] << scale) + disp + r[segment]. */
  base = ZERO;
  index = ZERO;
  scale = 0;
  disp = 0;
  dispHi = 0;
  segment = ZERO;
  /** 0: 64-bit addresses; 1: 32-bit address in 64-bit code; 2: 32-bit code. */
  address32 = 0;
  imm = 0;
  immHi = 0;
  /** REP prefix: 0, 0xf2 or 0xf3. */
  rep = 0;
  /** Bytes of an instruction that continues on the next page, to see whether it is still the same. */
  bytes: Uint8Array | undefined = undefined;

  constructor(run: Run) {
    this.run = run;
  }
}

/** Code that is decoded to {@link Op}s. */
export type OpBlock = Block<Op>;
export type OpPage = CodePage<Op>;
export type OpCache = CodeCache<Op>;

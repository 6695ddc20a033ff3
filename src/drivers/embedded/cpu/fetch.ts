import { ACCESS } from '../../../machine/index.ts';
import { UNBACKED } from '../memory.ts';
import { Block } from './code.ts';
import type { Cpu } from './cpu.ts';
import { Decoder, MAX_LENGTH, NEEDS_MORE } from './decoder.ts';
import { resolve } from './mmu.ts';
import type { Op, OpBlock, OpPage } from './op.ts';
import { ONE_BYTE, TWO_BYTE } from './opcodes.ts';
import { probed } from './probes.ts';
import { CODE_BASE } from './slots.ts';

/* From rip to decoded code. */

/** Instructions in a block at most, so that the loop looks around now and then. */
const BLOCK_LIMIT = 64;

const decoder = new Decoder(ONE_BYTE, TWO_BYTE);
/** The bytes of an instruction that continues on the next page. */
const joined = new Uint8Array(MAX_LENGTH);

/** The page of code at a linear address, checked for execution. Throws FAULT or STOP. */
function codePageAt(c: Cpu, lo: number, hi: number): OpPage {
  const known = c.tlb.code(lo, hi);
  if (known && known.mode64 === c.mode64) return known;
  const frame = resolve(c, lo, hi, ACCESS.execute, c.cpl === 3, 1);
  const page = c.code.page(frame === UNBACKED ? c.memory.unbacked : frame, c.mode64);
  if ((c.allowed & ACCESS.execute) !== 0) c.tlb.addCode(lo, hi, page);
  return page;
}

/** Looks up the page of code that rip is in. */
export function enterCodePage(c: Cpu): OpPage {
  const page = codePageAt(c, c.ripLo, c.ripHi);
  c.r[CODE_BASE] = c.ripLo & ~0xfff;
  c.r[CODE_BASE + 1] = c.ripHi;
  c.codePage = page;
  return page;
}

/** Decodes the block at rip, which the page does not have yet. */
export function decodeBlock(c: Cpu, known: OpPage): OpBlock {
  let page = known;
  if (c.code.full) {
    c.code.dropAll();
    page = enterCodePage(c);
  }
  const offset = c.ripLo & 0xfff;
  const ops: Op[] = [];
  let at = offset;
  while (ops.length < BLOCK_LIMIT && at < 4096) {
    const op = page.ops.get(at) ?? decodeInPage(c, page, at);
    if (!op) break;
    ops.push(watched(c, op));
    if (op.ends) break;
    at = op.next;
  }
  if (ops.length === 0) return new Block([watched(c, crossingOp(c, page, offset))]);
  const block = new Block(ops);
  page.addBlock(offset, block);
  c.code.decoded(page, block);
  return block;
}

/** What a block has for an instruction. */
function watched(c: Cpu, op: Op): Op {
  return c.code.probes.hasOffset(op.start) ? probed(op) : op;
}

/** Undefined when the instruction continues on the next page. */
function decodeInPage(c: Cpu, page: OpPage, offset: number): Op | undefined {
  try {
    const from = page.frame + offset;
    const op = decoder.decode(c.memory.bytes, from, page.frame + 4096, offset, page.mode64);
    page.addOp(op);
    return op;
  } catch (signal) {
    if (signal === NEEDS_MORE) return undefined;
    throw signal;
  }
}

/**
 * An instruction on two pages. It is decoded once, but its bytes are compared every time: the second page may be
 * another one now.
 */
function crossingOp(c: Cpu, page: OpPage, offset: number): Op {
  const { bytes } = c.memory;
  const here = 4096 - offset;
  const lo = (c.ripLo + here) | 0;
  const next = codePageAt(c, lo, lo === 0 ? (c.ripHi + 1) | 0 : c.ripHi);
  for (let i = 0; i < MAX_LENGTH; i++) {
    joined[i] = bytes[i < here ? page.frame + offset + i : next.frame + i - here]!;
  }
  const known = page.crossing.get(offset);
  if (known?.bytes?.every((byte, i) => byte === joined[i])) return known;
  const op = decoder.decode(joined, 0, MAX_LENGTH, offset, page.mode64);
  op.bytes = joined.slice(0, op.next - offset);
  page.crossing.set(offset, op);
  return op;
}

import { VECTOR } from '../../../abi/x86.ts';
import { goOn } from './branch.ts';
import { FLAG } from './constants.ts';
import type { Cpu } from './cpu.ts';
import { deliver } from './deliver.ts';
import { GuestEvent } from './event.ts';
import { decodeBlock, enterCodePage } from './fetch.ts';
import { exactRip } from './mmu.ts';
import type { Op, OpBlock, OpPage } from './op.ts';
import { ATTENTION, FAULT, RESTART, SHUTDOWN, STOP } from './signals.ts';
import { CODE_BASE } from './slots.ts';

/** Why {@link run} returned. */
export const EXIT = {
  /** All instructions of the budget ran. */
  budget: 0,
  /** A trap fired: see Cpu.stop. rip is exact and nothing of the instruction has happened. */
  stop: 1,
  /** Somebody asked for the vCPU: ATTENTION.request is set. */
  request: 2,
  /** Waiting for an interrupt. */
  halt: 3,
  /** Triple fault. */
  shutdown: 4,
  /** ATTENTION.leave is set. */
  leave: 5,
} as const;
export type Exit = (typeof EXIT)[keyof typeof EXIT];
/** Not an exit: go on. */
const NONE = -1;

/** DR6.BS: the debug exception came from TF. */
const DR6_SINGLE_STEP = 0x4000;
const DR6 = 12;

const interrupt = new GuestEvent();

/** Executes at most `instructions`; Cpu.left says how many of them were not. Never throws. */
export function run(c: Cpu, instructions: number): Exit {
  c.left = instructions;
  while (c.left > 0) {
    try {
      const exit = c.attention === 0 ? runBlocks(c) : attend(c);
      if (exit !== NONE) return exit;
    } catch (signal) {
      // A page stop has made rip exact already, and its handler may have moved it since.
      if (signal !== RESTART) exactRip(c);
      finishEarly(c);
      if (signal === FAULT) takeFault(c);
      else if (signal === RESTART) continue;
      else if (signal === STOP) return EXIT.stop;
      else if (signal === SHUTDOWN) return EXIT.shutdown;
      else throw signal;
    }
  }
  return EXIT.budget;
}

function blockAt(c: Cpu): OpBlock {
  let page: OpPage | undefined = c.codePage;
  if (page === undefined || (c.ripLo & ~0xfff) !== c.r[CODE_BASE] || c.ripHi !== c.r[CODE_BASE + 1]) {
    page = enterCodePage(c);
  }
  const number = page.blockAt[c.ripLo & 0xfff]!;
  return number !== 0 ? page.blocks[number]! : decodeBlock(c, page);
}

/** Runs whole blocks as long as nothing needs attention. */
function runBlocks(c: Cpu): typeof NONE | Exit {
  do {
    const block = blockAt(c);
    // Looking up the block may have granted the execution of its first instruction.
    if (block.count > c.left || c.attention !== 0) return step(c);
    c.block = block;
    const { ops } = block;
    let op: Op;
    let i = 0;
    do {
      op = ops[i]!;
      c.position = i++;
      op.run(c, op);
    } while (i < block.count);
    c.position = -1;
    c.left -= i;
    if (!op.ends) goOn(c, op);
    if (c.cutBlock !== undefined) endGrants(c, op);
  } while (c.attention === 0 && c.left > 0);
  return NONE;
}

/** After an instruction was left by throwing. */
function finishEarly(c: Cpu): void {
  c.uncut();
  if (c.position > 0) c.left -= c.position;
  c.position = -1;
}

/** Makes what the instruction raised the event to be delivered next. */
function takeFault(c: Cpu): void {
  c.left--;
  c.queueEvent(c.fault);
  c.clearGrants();
}

/** Does one thing that comes before the next instruction, or one instruction under observation. */
function attend(c: Cpu): typeof NONE | Exit {
  const why = c.attention;
  const stepping = (why & ATTENTION.step) !== 0;
  if ((why & ATTENTION.dead) !== 0) return EXIT.halt;
  if ((why & ATTENTION.leave) !== 0) return EXIT.leave;
  if ((why & ATTENTION.request) !== 0) return EXIT.request;
  // What a handler let an instruction do happens before anything else can make it start again.
  if ((why & ATTENTION.grant) !== 0 && !c.delivering) return step(c);
  if (stepping && c.stepFailed && !c.eventPending) return stepStop(c);
  if (c.eventPending) return deliverEvent(c);
  if (c.injectionPending && !stepping) {
    c.queueEvent(c.injection);
    return deliverEvent(c);
  }
  if ((why & ATTENTION.interrupt) !== 0 && (why & ATTENTION.shadow) === 0) {
    if (!stepping) {
      deliverInterrupt(c);
      return NONE;
    }
    // An interrupt that has to wait for the end of stepping ends HLT all the same.
    c.attention &= ~ATTENTION.halt;
    return step(c);
  }
  if ((why & ATTENTION.halt) !== 0) return EXIT.halt;
  return step(c);
}

/** Delivers the pending event. After an injection the stop that tells what it was follows. */
function deliverEvent(c: Cpu): typeof NONE | Exit {
  c.delivering = true;
  try {
    deliver(c, c.event);
  } catch (signal) {
    if (signal === SHUTDOWN && c.injectionPending) return trapStop(c);
    throw signal;
  }
  c.delivering = false;
  c.eventPending = false;
  c.attention &= ~(ATTENTION.halt | ATTENTION.shadow);
  if (!c.injectionPending) c.attention &= ~ATTENTION.event;
  c.clearGrants();
  c.left--;
  if ((c.attention & ATTENTION.step) !== 0) return stepStop(c);
  return c.injectionPending ? trapStop(c) : NONE;
}

function trapStop(c: Cpu): Exit {
  c.injectionPending = false;
  if (!c.eventPending) c.attention &= ~ATTENTION.event;
  const stop = c.stops.trap;
  stop.vector = c.event.vector;
  stop.errorCode = c.event.hasCode ? c.event.code : 0;
  stop.addressLo = c.cr2Lo;
  stop.addressHi = c.cr2Hi;
  c.stop = stop;
  return EXIT.stop;
}

function deliverInterrupt(c: Cpu): void {
  const vector = c.apic.pending();
  interrupt.set(vector, false, 0);
  interrupt.external = true;
  c.delivering = true;
  deliver(c, interrupt);
  c.delivering = false;
  c.apic.acknowledge(vector);
  c.attention &= ~ATTENTION.halt;
  c.clearGrants();
  c.updateInterrupt();
  c.left--;
}

function stepStop(c: Cpu): Exit {
  c.stops.singlestep.failed = c.stepFailed;
  c.stepFailed = false;
  c.stop = c.stops.singlestep;
  return EXIT.stop;
}

/** Executes one instruction. */
function step(c: Cpu): typeof NONE | Exit {
  const { cpl } = c;
  const before = c.attention;
  c.delivering = false;
  c.attention &= ~ATTENTION.shadow;
  const block = blockAt(c);
  const op = block.ops[0]!;
  c.block = block;
  c.position = 0;
  op.run(c, op);
  c.position = -1;
  c.left--;
  if (!op.ends) goOn(c, op);
  if ((c.attention & ATTENTION.grant) !== 0) endGrants(c, op);
  // SYSCALL and the like take TF away from the code that they enter.
  const trapFlag = (before & ATTENTION.trapFlag) !== 0;
  if (trapFlag && (c.cpl === cpl || (c.systemFlags & FLAG.TF) !== 0)) {
    c.dr[DR6] = c.dr[DR6]! | DR6_SINGLE_STEP;
    c.fault.set(VECTOR.DB, false, 0);
    c.queueEvent(c.fault);
  }
  return (c.attention & ATTENTION.step) !== 0 ? stepStop(c) : NONE;
}

/** Takes back what the instruction was granted, unless it is a REP that was granted to its end; its probe comes once. */
function endGrants(c: Cpu, op: Op): void {
  c.uncut();
  c.leaveCodePage();
  const repeats = op.rep !== 0 && (c.ripLo & 0xfff) === op.start;
  const handled = repeats && c.probeGranted;
  if (!(repeats && c.repGranted)) c.clearGrants();
  if (handled) c.grantProbe();
}

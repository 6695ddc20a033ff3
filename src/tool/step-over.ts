import { getU64, putU64 } from '../abi/bytes.ts';
import { deferred } from '../awaitable.ts';
import { KvmiError, messageOf } from '../error.ts';
import type { Effect } from '../x86/effect.ts';
import type { BreakpointSite } from './breakpoint-site.ts';
import type { Dispatcher } from './dispatcher.ts';
import type { GuestEvent } from './event.ts';
import { holdAll } from './hold.ts';
import type { Registers } from './registers.ts';
import type { GuestVcpu } from './vcpu.ts';

const CR4_CET = 1n << 23n;
const RFLAGS_TF = 1n << 8n;
/** Kernel addresses have the highest bit set. */
const KERNEL_HALF = 1n << 63n;
/** A REP instruction is left alone after this many steps; so is a step that is interrupted again and again. */
const MAX_STEPS = 65_536;

const WHO = 'step-over';

/** What stepping needs of the guest. */
export interface SteppedGuest {
  readonly vcpus: readonly GuestVcpu[];
  readonly dispatcher: Dispatcher;
  readonly connection: { readonly ended: boolean };
  report(error: Error): void;
}

type BreakpointEvent = GuestEvent<'BREAKPOINT'>;

/** Whether register values alone show all that the instruction does here. */
function isPlain(instruction: Effect, registers: Registers): boolean {
  if (registers.mode !== 8 || (registers.rflags & RFLAGS_TF) !== 0n) return false;
  if (instruction.tracked && (registers.cr4 & CR4_CET) !== 0n) return false;
  if (instruction.stack !== 'push') return true;
  // A user's stack may be write-protected, to be copied first; the kernel's own never is.
  return (registers.cs.selector & 3) === 0 && registers.rsp >= KERNEL_HALF;
}

/**
 * Carries the replaced instruction out on the event's registers and answers; calls `otherwise`, with nothing done, when
 * it has to be single-stepped.
 */
export function carryOut(site: BreakpointSite, event: BreakpointEvent, otherwise: () => void): void {
  const { instruction } = site;
  if (!instruction || !isPlain(instruction, event.registers)) {
    otherwise();
  } else if (instruction.stack === 'none') {
    instruction.run(event.registers, 0n);
    enterWith(site, event, event.registers);
  } else {
    const done = carryOutWithStack(instruction, event);
    void done.then((registers) => (registers ? enterWith(site, event, registers) : otherwise()));
  }
}

/** The registers afterwards; undefined when the stack cannot be reached. */
async function carryOutWithStack(
  instruction: Effect,
  event: BreakpointEvent,
): Promise<Registers | undefined> {
  const { memory } = event.vcpu;
  const registers = event.registers.copy();
  const slot = new Uint8Array(8);
  try {
    if (instruction.stack === 'pop') {
      if (!(await memory.read(registers.rsp, slot))) return undefined;
      instruction.run(registers, getU64(slot, 0));
      return registers;
    }
    putU64(slot, 0, instruction.run(registers, 0n));
    return (await memory.write(registers.rsp, slot)) ? registers : undefined;
  } catch {
    return undefined;
  }
}

/** Answers with changed registers. If they cannot be set, the next hit is single-stepped. */
function enterWith(site: BreakpointSite, event: BreakpointEvent, registers: Registers): void {
  event.vcpu.postRegisters(registers, (error) => {
    site.instruction = undefined;
    event.vcpu.connection.report(error as Error);
  });
  event.reply('retry');
}

/**
 * Carries the replaced instruction out by single-stepping it, with its byte in place and the other vCPUs stopped.
 * Whatever fails, the byte is the guest's again at the end: then the breakpoint is lost, and reported.
 */
export async function stepOver(
  guest: SteppedGuest,
  site: BreakpointSite,
  event: BreakpointEvent,
): Promise<void> {
  const { vcpu, registers } = event;
  const details = registers.changed ? { registers } : undefined;
  if (!site.armed) {
    event.reply('retry', details);
    return;
  }
  let release = () => {};
  let stepped: GuestEvent<'SINGLESTEP'> | undefined;
  try {
    release = await holdAll(guest.vcpus.filter((other) => other !== vcpu));
    const [ours] = await Promise.all([site.disarm(), vcpu.switchSinglestep(true, WHO)]);
    stepped = await step(guest, site, event, details);
    const wanted = ours && site.breakpoints.length > 0;
    await Promise.all([wanted && site.arm(), vcpu.switchSinglestep(false, WHO)]);
  } catch (error) {
    if (!guest.connection.ended) await giveUp(guest, site, vcpu, error);
    event.reply('retry', details);
  } finally {
    release();
    if (stepped) passOn(guest, stepped);
  }
}

/** Somebody else may single-step this vCPU, too. */
function passOn(guest: SteppedGuest, stepped: GuestEvent<'SINGLESTEP'>): void {
  if (stepped.vcpu.singlestepping) guest.dispatcher.dispatch(stepped);
  else stepped.reply();
}

async function giveUp(
  guest: SteppedGuest,
  site: BreakpointSite,
  vcpu: GuestVcpu,
  cause: unknown,
): Promise<void> {
  await Promise.allSettled([site.disarm(), vcpu.switchSinglestep(false, WHO)]);
  const message = `the breakpoint at 0x${site.gva.toString(16)} was taken out: ${messageOf(cause)}`;
  guest.report(
    new KvmiError('E_BREAKPOINT_LOST', message, {
      hint: 'The guest goes on unharmed. Set the breakpoint again, or choose the first instruction of a function.',
      data: { gva: site.gva },
      cause,
    }),
  );
}

/** Lets the vCPU carry one instruction out. The result is the open event that says so. */
async function step(
  guest: SteppedGuest,
  site: BreakpointSite,
  event: BreakpointEvent,
  details: { registers: Registers } | undefined,
): Promise<GuestEvent<'SINGLESTEP'>> {
  const { vcpu, rip } = event;
  let next = deferred<GuestEvent<'SINGLESTEP'>>();
  const unclaim = guest.dispatcher.claim('SINGLESTEP', (claimed) => {
    if (claimed.vcpu !== vcpu) return false;
    next.resolve(claimed as GuestEvent<'SINGLESTEP'>);
    return true;
  });
  try {
    event.reply('retry', details);
    for (let steps = 0; steps < MAX_STEPS; steps++) {
      const stepped = await arrival(next.promise, vcpu);
      if (stepped.registers.rip !== rip || !(stepped.data.failed || site.repeats)) return stepped;
      next = deferred();
      stepped.reply();
    }
    throw new KvmiError(
      'E_STEP',
      `vCPU ${vcpu.index} did not get past the instruction in ${MAX_STEPS} steps`,
    );
  } finally {
    unclaim();
  }
}

/** Waits for the event as long as a command may take; longer while the user keeps the vCPU stopped. */
async function arrival<T>(event: Promise<T>, vcpu: GuestVcpu): Promise<T> {
  const { connection, stop } = vcpu;
  for (;;) {
    const expired = deferred<undefined>();
    const timer = setTimeout(expired.resolve, connection.timeout, undefined);
    const forget = connection.onEnd(() => expired.resolve(undefined));
    const first = await Promise.race([event, expired.promise]);
    clearTimeout(timer);
    forget();
    if (first !== undefined) return first;
    if (!stop.held || connection.ended) {
      throw new KvmiError('E_TIMEOUT', `vCPU ${vcpu.index} did not report the single step in time`);
    }
  }
}

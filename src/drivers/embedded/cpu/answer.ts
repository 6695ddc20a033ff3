import { VECTOR } from '../../../abi/x86.ts';
import { type Answer, PAGE_SHIFT } from '../../../machine/index.ts';
import { completeCr, completeMsr } from './control.ts';
import type { Cpu } from './cpu.ts';
import { GuestEvent } from './event.ts';
import { ATTENTION, FAULT } from './signals.ts';
import { completeHypercall } from './system.ts';

const queued = new GuestEvent();

/** Makes a vCPU that stopped go on as the answer says. `crash` is not handled here. */
export function applyAnswer(c: Cpu, answer: Answer): void {
  const { stop } = c;
  const stepping = (c.attention & ATTENTION.step) !== 0;
  if (stepping && stop.kind !== 'page' && stop.kind !== 'singlestep') c.stepFailed = true;
  if (answer.action !== 'continue') {
    c.clearGrants();
    const refused = answer.action === 'refuse' && (stop.kind === 'cr' || stop.kind === 'msr');
    if (refused) {
      queued.set(VECTOR.GP, true, 0);
      c.queueEvent(queued);
    }
    return;
  }
  switch (stop.kind) {
    case 'breakpoint':
      queued.set(VECTOR.BP, false, 0);
      queued.softwareLength = stop.length;
      c.queueEvent(queued);
      break;
    case 'cr':
      complete(c, () => completeCr(c, answer.value));
      break;
    case 'msr':
      complete(c, () => completeMsr(c, answer.value));
      break;
    case 'hypercall':
      complete(c, () => completeHypercall(c));
      break;
    case 'cpuid':
      moveOn(c);
      break;
    case 'descriptor':
      c.descriptorGranted = true;
      c.attention |= ATTENTION.grant;
      break;
    case 'page':
      c.grant(Math.floor(stop.gpa / 2 ** PAGE_SHIFT), stop.access);
      if (answer.substitute) c.substitute = answer.substitute;
      if (answer.repComplete) c.repGranted = true;
      break;
    case 'xsetbv':
    case 'singlestep':
    case 'trap':
      break;
  }
}

/** Carries out what an instruction was stopped before, and puts rip behind it. It may still raise an exception. */
function complete(c: Cpu, effect: () => void): void {
  try {
    effect();
  } catch (signal) {
    if (signal !== FAULT) throw signal;
    c.queueEvent(c.fault);
    return;
  }
  moveOn(c);
}

/** Puts rip behind the instruction that stopped, unless the handler moved it. */
function moveOn(c: Cpu): void {
  c.left--;
  if (c.ripLo !== c.stopLo || c.ripHi !== c.stopHi) return;
  const lo = (c.ripLo + c.stopLength) | 0;
  if (c.mode64 && lo >>> 0 < c.ripLo >>> 0) c.ripHi = (c.ripHi + 1) | 0;
  c.ripLo = lo;
}

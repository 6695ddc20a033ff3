import { SIGTRAP, threadId } from '../../rsp/stop-reply.ts';
import type { GdbClient } from './gdb.ts';
import type { Stopped } from './gdb-link.ts';
import type { Others } from './others.ts';
import type { VcpuRun } from './stopped-vcpu.ts';

/** How many steps of QEMU's it takes to execute an instruction, at most. */
const TRIES = 16;

/** How an instruction is executed alone. */
export interface StepAlone {
  /** How long a halted vCPU may wait for an interrupt; without it, as long as it takes. */
  readonly timeoutMs?: number | undefined;
  /**
   * Sends what is to be done before it. That goes out in one piece with the step: somebody else's `cont` in between would let
   * the guest run with what is only meant for the instruction.
   */
  readonly prepare?: (() => Promise<unknown>) | undefined;
  /** Where the instruction is, if `prepare` sends the vCPU elsewhere. */
  readonly at?: bigint;
}

/**
 * Executes one instruction on a vCPU, while the others stay stopped; one that leads to itself several times. False when
 * the vCPU is halted and no interrupt has woken it in time.
 */
export async function stepAlone(
  vcpu: VcpuRun,
  gdb: GdbClient,
  others: Others,
  how: StepAlone,
): Promise<boolean> {
  const from = how.at ?? (await gdb.readRegister(vcpu.index, 'rip'));
  for (let tries = 0; tries < TRIES; tries++) {
    const { signal } = await stepOnce(vcpu, gdb, others, tries === 0 ? how : { ...how, prepare: undefined });
    if (signal !== SIGTRAP) return false;
    if ((await gdb.readRegister(vcpu.index, 'rip')) !== from) break;
  }
  return true;
}

/** One step of QEMU's, which ends before the instruction when something calls the vCPU out of the guest just then. */
async function stepOnce(
  vcpu: VcpuRun,
  gdb: GdbClient,
  others: Others,
  how: Pick<StepAlone, 'timeoutMs' | 'prepare'>,
): Promise<Stopped> {
  const stopped = await letRun(`vCont;s:${threadId(vcpu.index)}`, gdb, others, how);
  vcpu.stepUnfinished = stopped.signal !== SIGTRAP;
  vcpu.forget();
  return stopped;
}

/** Lets vCPUs run as `command` says, until something stops them, or for `timeoutMs`. `prepare`: see {@link StepAlone}. */
export async function letRun(
  command: string,
  gdb: GdbClient,
  others: Others,
  { timeoutMs, prepare }: Pick<StepAlone, 'timeoutMs' | 'prepare'>,
): Promise<Stopped> {
  others.expectResume();
  const stopping = gdb.nextStop();
  const timer = timeoutMs === undefined ? undefined : setTimeout(() => void gdb.interrupt(), timeoutMs);
  const prepared = prepare?.();
  gdb.resume(command);
  const [stopped] = await Promise.all([stopping, prepared]);
  clearTimeout(timer);
  if (stopped.signal !== SIGTRAP && !stopped.asked) await others.stopped();
  return stopped;
}

import { SIGTRAP, threadId } from '../../rsp/stop-reply.ts';
import type { GdbClient } from './gdb.ts';
import type { Others } from './others.ts';
import type { VcpuRun } from './stopped-vcpu.ts';

/** How many steps of QEMU's it takes to execute an instruction, at most. */
const TRIES = 16;

/**
 * Executes one instruction on a vCPU, while the others stay stopped; one that leads to itself several times. False when
 * the vCPU is halted and no interrupt has woken it within `timeoutMs`.
 */
export async function stepAlone(
  vcpu: VcpuRun,
  gdb: GdbClient,
  others: Others,
  timeoutMs?: number,
): Promise<boolean> {
  const before = await gdb.readRegister(vcpu.index, 'rip');
  for (let tries = 0; tries < TRIES; tries++) {
    if (!(await stepOnce(vcpu, gdb, others, timeoutMs))) return false;
    if ((await gdb.readRegister(vcpu.index, 'rip')) !== before) break;
  }
  return true;
}

/** One step of QEMU's, which ends before the instruction when something calls the vCPU out of the guest just then. */
async function stepOnce(
  vcpu: VcpuRun,
  gdb: GdbClient,
  others: Others,
  timeoutMs: number | undefined,
): Promise<boolean> {
  others.expectResume();
  const stopped = gdb.nextStop();
  const timer = timeoutMs === undefined ? undefined : setTimeout(() => void gdb.interrupt(), timeoutMs);
  gdb.resume(`vCont;s:${threadId(vcpu.index)}`);
  const { signal, asked } = await stopped;
  clearTimeout(timer);
  if (signal !== SIGTRAP && !asked) await others.stopped();
  vcpu.stepUnfinished = signal !== SIGTRAP;
  vcpu.forget();
  return signal === SIGTRAP;
}

import { putU32 } from '../../../abi/bytes.ts';
import { type Call, type Slot, SPARE_SLOT } from './agent.ts';
import { SLOT } from './agent-code.ts';
import { StoppedThreads } from './stopped-threads.ts';
import { withRestart } from './tracee.ts';
import type { Vmm } from './vmm.ts';

/** Carries out system calls in the VMM; `slot` has room for what they point to. */
export interface CallsWithin {
  readonly slot: Slot;
  call(calls: readonly Call[]): bigint[];
}

/**
 * Runs something with every thread of a VMM stopped, by way of the agent in one of them; none of them may be traced. When
 * this process is killed the series of calls that is being made is completed, and the VMM goes on.
 *
 * @param look sees the VMM while it is stopped and the agent is not in it yet.
 */
export function withinStoppedVmm<L, T>(vmm: Vmm, look: () => L, run: (within: CallsWithin, seen: L) => T): T {
  const threads = StoppedThreads.stop(vmm);
  try {
    const seen = look();
    const tracee = threads.first;
    const before = Uint8Array.from(tracee.getRegisters());
    const mask = tracee.getSignalMask();
    const slot = vmm.agentVia(tracee).slot(SPARE_SLOT);
    // Of no vCPU: abandoned, the thread just goes on.
    putU32(slot.bytes, SLOT.vcpuFd, -1);
    putU32(slot.bytes, SLOT.tid, tracee.tid);
    putU32(slot.bytes, SLOT.pid, vmm.pid);
    slot.save(withRestart(before), mask);
    try {
      return run({ slot, call: (calls) => slot.call(tracee, calls) }, seen);
    } finally {
      tracee.setRegisters(before);
      tracee.setSignalMask(mask);
      vmm.removeAgent(tracee);
    }
  } finally {
    threads.release();
  }
}

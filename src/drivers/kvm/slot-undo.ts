import { putU32 } from '../../abi/bytes.ts';
import { SPARE_SLOT } from './agent.ts';
import { SLOT } from './agent-code.ts';
import { emulationFailureCall, REQUESTS_AT_ONCE, slotCalls } from './slot-calls.ts';
import type { SlotRequest } from './split-slot.ts';
import { StoppedThreads } from './stopped-threads.ts';
import { withRestart } from './tracee.ts';
import type { Vmm } from './vmm.ts';

/**
 * Makes the memory slots of a VM what they were, while its whole VMM is stopped; no thread of it may be traced. Deletions
 * of slots that do not exist are refused, and are none.
 */
export function undoSlots(vmm: Vmm, vmFd: number, requests: readonly SlotRequest[]): void {
  const threads = StoppedThreads.stop(vmm);
  try {
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
      for (let i = 0; i < requests.length; i += REQUESTS_AT_ONCE) {
        slot.call(tracee, slotCalls(slot, vmFd, requests.slice(i, i + REQUESTS_AT_ONCE)));
      }
      slot.call(tracee, [emulationFailureCall(slot, vmFd, false)]);
    } finally {
      tracee.setRegisters(before);
      tracee.setSignalMask(mask);
      vmm.removeAgent(tracee);
    }
  } finally {
    threads.release();
  }
}

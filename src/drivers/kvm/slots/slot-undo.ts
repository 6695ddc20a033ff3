import { withinStoppedVmm } from '../thread/stopped-vmm.ts';
import type { Vmm } from '../thread/vmm.ts';
import { emulationFailureCall, REQUESTS_AT_ONCE, slotCalls } from './slot-calls.ts';
import type { SlotRequest } from './slot-request.ts';

/**
 * Makes the memory slots of a VM what they were, while its whole VMM is stopped; no thread of it may be traced. Deletions
 * of slots that do not exist are refused, and are none.
 */
export function undoSlots(vmm: Vmm, vmFd: number, requests: readonly SlotRequest[]): void {
  withinStoppedVmm(
    vmm,
    () => {},
    ({ slot, call }) => {
      for (let i = 0; i < requests.length; i += REQUESTS_AT_ONCE) {
        call(slotCalls(slot, vmFd, requests.slice(i, i + REQUESTS_AT_ONCE)));
      }
      call([emulationFailureCall(slot, vmFd, false)]);
    },
  );
}

import { KVM, KVM_CAP, kvmEnableCap, kvmMemoryRegion } from '../../../abi/kvm.ts';
import { SYS } from '../../../abi/linux.ts';
import type { Call, Slot } from '../thread/agent.ts';
import { CALL_LIMIT } from '../thread/agent-code.ts';
import { putRequest, type SlotRequest } from './slot-request.ts';

/** How many requests about memory slots one series of calls has room for, besides what else belongs to it. */
export const REQUESTS_AT_ONCE = CALL_LIMIT - 2;

/** The calls that make requests, whose arguments are put into the slot of the thread that is to make them. */
export function slotCalls(
  { argument, argumentAddress }: Slot,
  vmFd: number,
  requests: readonly SlotRequest[],
): Call[] {
  return requests.map((request, i) => {
    const at = i * kvmMemoryRegion.size;
    putRequest(argument, at, request);
    return [SYS.ioctl, vmFd, KVM.SET_USER_MEMORY_REGION, argumentAddress + at];
  });
}

/**
 * The call after which an instruction that cannot be emulated leaves the guest, or no longer. Without it KVM raises #UD
 * in a guest that fetches from a page that is away.
 */
export function emulationFailureCall({ argument, argumentAddress }: Slot, vmFd: number, on: boolean): Call {
  const at = REQUESTS_AT_ONCE * kvmMemoryRegion.size;
  kvmEnableCap.write(argument, at, {
    cap: KVM_CAP.EXIT_ON_EMULATION_FAILURE,
    flags: 0,
    args: [on ? 1n : 0n, 0n, 0n, 0n],
  });
  return [SYS.ioctl, vmFd, KVM.ENABLE_CAP, argumentAddress + at];
}

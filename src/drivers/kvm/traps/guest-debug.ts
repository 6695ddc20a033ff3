import { putU64 } from '../../../abi/bytes.ts';
import { KVM_EXIT, KVM_GUESTDBG, kvmGuestDebug } from '../../../abi/kvm.ts';
import { SLOT } from '../thread/agent-code.ts';

/** What one vCPU is debugged for. */
export interface DebugRequest {
  singlestep: boolean;
  /** int3, whoever wrote it. */
  software: boolean;
  /** Linear addresses of instructions, up to four. */
  hardware: readonly bigint[];
  /** Go one instruction beyond a hardware breakpoint before it counts again. */
  stepOver: boolean;
}

/** Exact-match bits that are set in any case (Intel SDM vol. 3, 18.2.4). */
const DR7_FIXED = 0x400n;
const DR7_ENABLE = (index: number): bigint => 2n << BigInt(2 * index);

/** Several times what the guard takes to react and to put the bytes of breakpoints back. */
const GRACE_NS = 20_000_000n;

/** Writes what the agent arms (KVM_SET_GUEST_DEBUG) and which exits it reports into a slot. */
export function putDebugRequest(slot: Uint8Array, request: DebugRequest, msrs: boolean): void {
  const hardware = request.stepOver ? [] : request.hardware;
  const step = request.singlestep || request.stepOver;
  let control = 0;
  if (step) control |= KVM_GUESTDBG.SINGLESTEP;
  if (request.software) control |= KVM_GUESTDBG.USE_SW_BP;
  if (hardware.length > 0) control |= KVM_GUESTDBG.USE_HW_BP;
  if (control !== 0) control |= KVM_GUESTDBG.ENABLE;
  const debugreg = Array.from({ length: 8 }, (_, i) => hardware[i] ?? 0n);
  debugreg[7] = hardware.reduce((dr7, _, i) => dr7 | DR7_ENABLE(i), hardware.length > 0 ? DR7_FIXED : 0n);
  kvmGuestDebug.write(slot, SLOT.debugOn, { control, debugreg });
  let mask = 0n;
  if (control !== 0) mask |= 1n << BigInt(KVM_EXIT.DEBUG);
  if (msrs) mask |= 1n << BigInt(KVM_EXIT.X86_WRMSR);
  putU64(slot, SLOT.exitMask, mask);
  putU64(slot, SLOT.grace + 8, request.software ? GRACE_NS : 0n);
}

/** Bits of DR6. */
export const DR6 = { HARDWARE: 0xfn, SINGLESTEP: 1n << 14n } as const;

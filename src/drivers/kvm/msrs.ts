import { getU64, putU32, putU64 } from '../../abi/bytes.ts';
import { kvmMsrEntry } from '../../abi/x86.ts';

/** Size of the header of struct kvm_msrs: the number of entries and padding. */
const HEADER = 8;

/** The size of a struct kvm_msrs with `count` entries. */
export function msrsSize(count: number): number {
  return HEADER + count * kvmMsrEntry.size;
}

/** Writes a struct kvm_msrs that asks for `indices`. */
export function putMsrRequest(into: Uint8Array, indices: readonly number[]): void {
  into.fill(0, 0, msrsSize(indices.length));
  putU32(into, 0, indices.length);
  for (let i = 0; i < indices.length; i++) putU32(into, HEADER + i * kvmMsrEntry.size, indices[i]!);
}

/** The value of entry `i`. */
export function msrValue(msrs: Uint8Array, i: number): bigint {
  return getU64(msrs, HEADER + i * kvmMsrEntry.size + 8);
}

/** Writes a struct kvm_msrs that sets one MSR. */
export function putMsrWrite(into: Uint8Array, index: number, value: bigint): void {
  putMsrRequest(into, [index]);
  putU64(into, HEADER + 8, value);
}

import { putU16, putU32, putU64 } from '../../abi/bytes.ts';
import { MSRS_OFFSET, putMode, putRegister, SREGS_OFFSET } from '../../abi/state.ts';
import { EVENT_MSRS, kvmSregs, vcpuState } from '../../abi/x86.ts';

/** The state of one vCPU at one moment, wherever it was read. */
export interface CpuState {
  /** False for an application processor that waits for SIPI. */
  readonly started: boolean;
  /** Waits for an interrupt after hlt. */
  readonly halted: boolean;
  /** The initial APIC id, where it is known. */
  readonly apicId: number | undefined;
  readonly rip: bigint;
  /** Fills `into` (536 bytes) with the x86 block of an event. */
  writeBlock(into: Uint8Array): void;
  msr(index: number): bigint | undefined;
  readonly xcr0: bigint;
  /** Fills `into` (4096 bytes) in the layout of KVM_GET_XSAVE. */
  writeXsave(into: Uint8Array): void;
  mtrrType(gpa: number): number;
}

/** A segment register as QEMU caches it: flags are the second word of the descriptor, with the limit bits masked. */
export interface SegmentCache {
  readonly selector: number;
  readonly base: bigint;
  readonly limit: number;
  readonly flags: number;
}

export type SegmentName = 'cs' | 'ds' | 'es' | 'fs' | 'gs' | 'ss' | 'tr' | 'ldt';
export const SEGMENT_NAMES: readonly SegmentName[] = ['cs', 'ds', 'es', 'fs', 'gs', 'ss', 'tr', 'ldt'];

const FLAG_BITS = { type: [8, 15], s: [12, 1], dpl: [13, 3], present: [15, 1] } as const;
const HIGH_FLAG_BITS = { avl: [20, 1], l: [21, 1], db: [22, 1], g: [23, 1] } as const;

/** Writes a segment into a state block as a kvm_segment. */
export function putSegment(into: Uint8Array, name: SegmentName, segment: SegmentCache): void {
  const at = SREGS_OFFSET + kvmSregs.offsetOf(name);
  const bits = ([shift, mask]: readonly [number, number]) => (segment.flags >>> shift) & mask;
  putU64(into, at, segment.base);
  putU32(into, at + 8, segment.limit);
  putU16(into, at + 12, segment.selector);
  into[at + 14] = bits(FLAG_BITS.type);
  into[at + 15] = bits(FLAG_BITS.present);
  into[at + 16] = bits(FLAG_BITS.dpl);
  into[at + 17] = bits(HIGH_FLAG_BITS.db);
  into[at + 18] = bits(FLAG_BITS.s);
  into[at + 19] = bits(HIGH_FLAG_BITS.l);
  into[at + 20] = bits(HIGH_FLAG_BITS.g);
  into[at + 21] = bits(HIGH_FLAG_BITS.avl);
  into[at + 22] = bits(FLAG_BITS.present) ? 0 : 1;
  into[at + 23] = 0;
}

/** Writes GDTR or IDTR into a state block as a kvm_dtable. */
export function putTable(into: Uint8Array, name: 'gdt' | 'idt', base: bigint, limit: number): void {
  const at = SREGS_OFFSET + kvmSregs.offsetOf(name);
  putU64(into, at, base);
  putU16(into, at + 8, limit);
  into.fill(0, at + 10, at + 16);
}

/** Reads back what {@link putTable} wrote. */
export function tableBase(state: Uint8Array, name: 'gdt' | 'idt'): bigint {
  return BigInt.asUintN(
    64,
    new DataView(state.buffer, state.byteOffset).getBigUint64(tableOffset[name], true),
  );
}

export function tableLimit(state: Uint8Array, name: 'gdt' | 'idt'): number {
  return new DataView(state.buffer, state.byteOffset).getUint16(tableOffset[name] + 8, true);
}

const tableOffset = {
  gdt: SREGS_OFFSET + kvmSregs.offsetOf('gdt'),
  idt: SREGS_OFFSET + kvmSregs.offsetOf('idt'),
};

/** The base of a segment in a state block. */
export function segmentBase(state: Uint8Array, name: SegmentName): bigint {
  return new DataView(state.buffer, state.byteOffset).getBigUint64(
    SREGS_OFFSET + kvmSregs.offsetOf(name),
    true,
  );
}

/** The selector of a segment in a state block. */
export function segmentSelector(state: Uint8Array, name: SegmentName): number {
  return new DataView(state.buffer, state.byteOffset).getUint16(
    SREGS_OFFSET + kvmSregs.offsetOf(name) + 12,
    true,
  );
}

const eventMsrOffsets = Object.keys(EVENT_MSRS).map((_, i) => MSRS_OFFSET + 8 * i);
const eventMsrs = Object.values(EVENT_MSRS);

/** Fills the MSRs of a state block and its mode, which follows from the rest. */
export function finishBlock(into: Uint8Array, msr: (index: number) => bigint | undefined): void {
  eventMsrs.forEach((index, i) => {
    putU64(into, eventMsrOffsets[i]!, msr(index) ?? 0n);
  });
  putMode(into);
}

/** Clears a state block, so that padding is zero. */
export function clearBlock(into: Uint8Array): void {
  into.fill(0, 0, vcpuState.size);
}

export { putRegister };

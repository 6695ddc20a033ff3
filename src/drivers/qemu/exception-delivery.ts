import { getRegister, putRegister, regsOf } from '../../abi/state.ts';
import {
  EFER_LMA,
  hasErrorCode,
  RFLAGS_IF,
  RFLAGS_NT,
  RFLAGS_RF,
  RFLAGS_TF,
  RFLAGS_VM,
  VECTOR,
} from '../../abi/x86.ts';
import { KvmiError } from '../../error.ts';
import type { PhysicalMemory } from '../../machine/memory.ts';
import { type Paging, pagingOf } from '../../machine/paging.ts';
import type { Exception } from '../../machine/vcpu.ts';
import { segmentBase, segmentSelector } from './cpu-state.ts';
import { type Gate, readGate, readSegment } from './descriptors.ts';
import { writeChangedRegisters } from './registers.ts';
import { readBytes, writeBytes } from './stopped-memory.ts';
import type { StoppedVcpu } from './stopped-vcpu.ts';

/** Traps: the pushed RFLAGS.RF is as it was; every other exception is a fault, for which it is set. */
const TRAPS: ReadonlySet<number> = new Set([VECTOR.BP, VECTOR.OF]);

/** Offsets in the 64-bit TSS. */
const TSS_RSP0 = 4;
const TSS_IST1 = 36;

/**
 * Delivers an exception through the guest's IDT as the CPU does in 64-bit mode (Intel SDM volume 3, "64-Bit Mode Stack
 * Frame"), with every vCPU stopped. `block` is the vCPU's state, `memory` writes as {@link StoppedMemory} does.
 * E_NOT_DELIVERED, with nothing changed, when the guest has no usable handler or stack.
 */
export async function deliverException(
  memory: PhysicalMemory,
  { gdb, index }: StoppedVcpu,
  block: Uint8Array,
  { vector, errorCode, address }: Exception,
): Promise<void> {
  if ((getRegister(block, 'efer') & EFER_LMA) === 0n)
    throw notDelivered(vector, 'the vCPU is not in long mode');
  const paging = pagingOf(block);
  const gate = await readGate(memory, paging, block, vector);
  if (gate === undefined) throw notDelivered(vector, 'its gate is not present');
  const code = await readSegment(memory, paging, block, gate.selector);
  const cpl = segmentSelector(block, 'ss') & 3;
  const privilege = code === undefined ? 0 : (code.flags >> 13) & 3;
  if (code === undefined || privilege > cpl)
    throw notDelivered(vector, 'its gate has an unusable code segment');
  if (privilege !== 0) throw notDelivered(vector, 'its handler does not run in ring 0');

  const switches = cpl !== privilege;
  const rsp = (await stackPointer(memory, paging, block, gate, switches)) & ~0xfn;
  const rflags = getRegister(block, 'rflags');
  const frame = [
    ...(hasErrorCode(vector) ? [BigInt(errorCode)] : []),
    getRegister(block, 'rip'),
    BigInt(segmentSelector(block, 'cs')),
    TRAPS.has(vector) ? rflags : rflags | RFLAGS_RF,
    getRegister(block, 'rsp'),
    BigInt(segmentSelector(block, 'ss')),
  ];
  const bytes = Buffer.alloc(8 * frame.length);
  frame.forEach((value, i) => {
    bytes.writeBigUInt64LE(value, 8 * i);
  });
  const top = rsp - BigInt(bytes.length);
  await writeBytes(memory, paging, top, bytes, 'the stack of the handler');

  const wanted = new Uint8Array(block);
  const cleared = RFLAGS_TF | RFLAGS_NT | RFLAGS_RF | RFLAGS_VM | (gate.interrupt ? RFLAGS_IF : 0n);
  putRegister(wanted, 'rflags', rflags & ~cleared);
  putRegister(wanted, 'rsp', top);
  // cs first: in 32-bit code QEMU would cut the new rip.
  await gdb.writeRegister(index, 'cs', BigInt(gate.selector & ~3));
  if (switches) await gdb.writeRegister(index, 'ss', 0n);
  putRegister(wanted, 'rip', gate.handler);
  await writeChangedRegisters(gdb, index, regsOf(wanted), regsOf(block));
  if (vector === VECTOR.PF) await gdb.writeRegister(index, 'cr2', address);
}

async function stackPointer(
  memory: PhysicalMemory,
  paging: Paging,
  block: Uint8Array,
  { ist }: Gate,
  switches: boolean,
): Promise<bigint> {
  if (ist === 0 && !switches) return getRegister(block, 'rsp');
  const offset = ist === 0 ? TSS_RSP0 : TSS_IST1 + 8 * (ist - 1);
  const bytes = await readBytes(memory, paging, segmentBase(block, 'tr') + BigInt(offset), 8, 'the TSS');
  return bytes.readBigUInt64LE(0);
}

function notDelivered(vector: number, why: string): KvmiError {
  return new KvmiError('E_NOT_DELIVERED', `exception ${vector} cannot be delivered: ${why}`, {
    data: { vector },
  });
}

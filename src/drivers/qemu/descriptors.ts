import type { PhysicalMemory } from '../../machine/memory.ts';
import type { Paging } from '../../machine/paging.ts';
import { type SegmentCache, tableBase, tableLimit } from './cpu-state.ts';
import { readBytes } from './stopped-memory.ts';

/* Descriptor tables of 64-bit mode (Intel SDM volume 3, "Interrupt and Exception Handling"). */

export const GATE_SIZE = 16;
const TABLE_INDICATOR = 4;
const RPL = 3;

/** An entry of the IDT. */
export interface Gate {
  readonly handler: bigint;
  readonly selector: number;
  /** Interrupt stack table entry, 0 for none. */
  readonly ist: number;
  /** True when delivery clears RFLAGS.IF. */
  readonly interrupt: boolean;
  readonly dpl: number;
}

/** The gate of a vector; undefined when it is not present, or not one that 64-bit mode has. */
export async function readGate(
  memory: PhysicalMemory,
  paging: Paging,
  state: Uint8Array,
  vector: number,
): Promise<Gate | undefined> {
  if (vector * GATE_SIZE + GATE_SIZE - 1 > tableLimit(state, 'idt')) return undefined;
  const gva = tableBase(state, 'idt') + BigInt(vector * GATE_SIZE);
  const gate = await readBytes(memory, paging, gva, GATE_SIZE, `the gate of vector ${vector}`);
  const access = gate[5]!;
  const type = access & 0x1f;
  if (!(access & 0x80) || (type !== 0xe && type !== 0xf)) return undefined;
  const low = BigInt(gate.readUInt16LE(0)) | (BigInt(gate.readUInt16LE(6)) << 16n);
  return {
    handler: low | (BigInt(gate.readUInt32LE(8)) << 32n),
    selector: gate.readUInt16LE(2),
    ist: gate[4]! & 7,
    interrupt: type === 0xe,
    dpl: (access >> 5) & 3,
  };
}

/**
 * The descriptor that a selector names, as a segment register caches it. A null selector, which 64-bit mode allows
 * in ss, gives an unusable segment of the privilege level that the selector asks for. Undefined when there is no
 * such descriptor (or it is in the LDT, which 64-bit system software does not use for code).
 */
export async function readSegment(
  memory: PhysicalMemory,
  paging: Paging,
  state: Uint8Array,
  selector: number,
): Promise<SegmentCache | undefined> {
  if ((selector & ~RPL) === 0) return { selector, base: 0n, limit: 0, flags: (selector & RPL) << 13 };
  const at = selector & ~7;
  if (selector & TABLE_INDICATOR || at + 7 > tableLimit(state, 'gdt')) return undefined;
  const descriptor = await readBytes(memory, paging, tableBase(state, 'gdt') + BigInt(at), 8, 'a descriptor');
  const [low, high] = [descriptor.readUInt32LE(0), descriptor.readUInt32LE(4)];
  const limit = (low & 0xffff) | (high & 0xf0000);
  return {
    selector,
    base: BigInt(((low >>> 16) | ((high & 0xff) << 16) | (high & 0xff000000)) >>> 0),
    limit: high & 0x800000 ? ((limit << 12) | 0xfff) >>> 0 : limit,
    flags: high & 0xf0ff00,
  };
}

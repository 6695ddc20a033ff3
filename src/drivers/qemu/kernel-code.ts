import { getRegister, putRegister } from '../../abi/state.ts';
import { type LeafMapping, leafMappings } from '../../machine/leaf-mappings.ts';
import type { PhysicalMemory } from '../../machine/memory.ts';
import { type Paging, pagingOf } from '../../machine/paging.ts';
import { isLegacyPrefix, isRex } from '../../x86/encodings.ts';

/** Kernels with page-table isolation keep two tables side by side: this bit of CR3 tells the one of user mode. */
const USER_TABLE = 0x1000n;
const MAPPING_LIMIT = 100_000;
/** Mappings are read in pieces, so that a huge one takes no huge buffer. */
const PIECE = 1 << 21;
/** An instruction that crosses the end of a piece is found by the overlap. */
const OVERLAP = 15;

/**
 * The paging of the kernel's own address space, from the state of a vCPU in whatever mode: in user mode its page
 * tables may lack most of the kernel.
 */
export async function kernelPaging(memory: PhysicalMemory, state: Uint8Array): Promise<Paging> {
  const paging = pagingOf(state);
  if ((getRegister(state, 'cr3') & USER_TABLE) === 0n) return paging;
  const kernel = new Uint8Array(state);
  const cr3 = getRegister(state, 'cr3') & ~USER_TABLE;
  putRegister(kernel, 'cr3', cr3);
  const other = pagingOf(kernel);
  const [mine, theirs] = [await mappingsOf(memory, paging), await mappingsOf(memory, other)];
  return theirs.length > mine.length ? other : paging;
}

async function mappingsOf(memory: PhysicalMemory, paging: Paging): Promise<readonly LeafMapping[]> {
  return (await leafMappings(memory, paging, { executable: true, user: false, limit: MAPPING_LIMIT }))
    .mappings;
}

/** Calls `found` for each piece of code that only the kernel can execute, with the address of its first byte. */
export async function eachKernelCode(
  memory: PhysicalMemory,
  paging: Paging,
  found: (code: Buffer, gva: bigint) => void,
): Promise<void> {
  const buffer = Buffer.alloc(PIECE + OVERLAP);
  for (const { gva, gpa, size } of await mappingsOf(memory, paging)) {
    for (let at = 0; at < size; at += PIECE) {
      const piece = buffer.subarray(0, Math.min(PIECE + OVERLAP, size - at));
      if (await memory.read(gpa + at, piece)) found(piece, gva + BigInt(at));
    }
  }
}

/**
 * Addresses where an instruction with the two-byte opcode `opcode` may start, that `accepts` by what follows the
 * opcode: every byte sequence counts, also within other instructions, and so does each prefix before it.
 */
export async function findOpcode(
  memory: PhysicalMemory,
  paging: Paging,
  opcode: readonly [number, number],
  accepts: (next: number) => boolean,
): Promise<Set<bigint>> {
  const addresses = new Set<bigint>();
  const needle = Buffer.from(opcode);
  await eachKernelCode(memory, paging, (code, gva) => {
    for (let at = code.indexOf(needle); at >= 0; at = code.indexOf(needle, at + 1)) {
      if (!accepts(code[at + 2] ?? 0)) continue;
      addresses.add(gva + BigInt(at));
      for (let start = at - 1; start >= 0 && isPrefix(code[start]!); start--)
        addresses.add(gva + BigInt(start));
    }
  });
  return addresses;
}

/** Legacy and REX prefixes of 64-bit mode. */
export function isPrefix(byte: number): boolean {
  return isRex(byte) || isLegacyPrefix(byte);
}

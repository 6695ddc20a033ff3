import { getU32, getU64 } from '../abi/bytes.ts';
import { decode, type Instruction } from './instruction.ts';

/** Where a call, jump or conditional jump with a distance leads from `address`; undefined for everything else. */
export function branchTarget(instruction: Instruction, address: bigint): bigint | undefined {
  if (!instruction.relative) return undefined;
  return BigInt.asUintN(64, address + BigInt(instruction.length) + instruction.immediate);
}

/** Opcodes that lead to where a register or memory says. */
const INDIRECT: readonly ReadonlySet<number>[] = [
  // retf and ret, iret; the group with call and jmp.
  new Set([0xc2, 0xc3, 0xca, 0xcb, 0xcf, 0xff]),
  // syscall, sysret, sysenter, sysexit, rsm.
  new Set([0x05, 0x07, 0x34, 0x35, 0xaa]),
];

/**
 * Whether the instruction at `address`, whose bytes are the first of `code`, is a branch that may lead to itself. Also true
 * where the bytes do not tell.
 */
export function mayBranchToItself(code: Uint8Array, address: bigint): boolean {
  const instruction = decode(code);
  if (instruction === undefined) return true;
  if (instruction.relative) return branchTarget(instruction, address) === address;
  return !instruction.vector && (INDIRECT[instruction.map]?.has(instruction.opcode) ?? false);
}

const JMP_NEAR = 0xe9;
const PUSH = 0x68;
const RET = 0xc3;
/** `mov dword [rsp+4], imm32`, without the immediate. */
const MOV_UPPER_HALF = 0x042444c7;

/**
 * Where the code at `at` leads for sure, in the forms that take the place of a function's start: `jmp`; `push` and `ret`,
 * perhaps with the upper half written in between; `mov` of 64 bits to a register, and `jmp` to it or `push` and `ret`.
 */
export function divertedTo(bytes: Uint8Array, at: number, address: bigint): bigint | undefined {
  const first = decode(bytes, at);
  if (first === undefined || first.map !== 0) return undefined;
  if (first.opcode === JMP_NEAR) return branchTarget(first, address);
  const next = at + first.length;
  if (first.opcode === PUSH && first.length === 5) {
    if (bytes[next] === RET) return BigInt.asUintN(64, first.immediate);
    if (next + 8 >= bytes.length || getU32(bytes, next) !== MOV_UPPER_HALF || bytes[next + 8] !== RET)
      return undefined;
    return (BigInt(getU32(bytes, next + 4)) << 32n) | BigInt(getU32(bytes, at + 1));
  }
  if (first.opcode >> 3 !== 0xb8 >> 3 || first.immediateSize !== 8) return undefined;
  const register = (first.opcode & 7) | (first.rex & 1 ? 8 : 0);
  return goesTo(register, bytes, next) ? getU64(bytes, first.immediateAt) : undefined;
}

/** `jmp` to a register, or `push` of it and `ret`. */
function goesTo(register: number, bytes: Uint8Array, at: number): boolean {
  const second = decode(bytes, at);
  if (second === undefined || second.map !== 0) return false;
  if (second.opcode === 0xff) return second.modRm?.rm === register && (second.modRm.reg & 7) === 4;
  const pushed =
    second.opcode >> 3 === 0x50 >> 3 && ((second.opcode & 7) | (second.rex & 1 ? 8 : 0)) === register;
  return pushed && bytes[at + second.length] === RET;
}

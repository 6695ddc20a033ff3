/** Arithmetic of the processor: results and status flags. */

export const MASK64 = (1n << 64n) - 1n;
export const MASK32 = (1n << 32n) - 1n;

const CF = 1n;
const PF = 1n << 2n;
const AF = 1n << 4n;
const ZF = 1n << 6n;
const SF = 1n << 7n;
const OF = 1n << 11n;
/** The flags that arithmetic sets. */
export const STATUS = CF | PF | AF | ZF | SF | OF;

/** Operations of the first eight opcode rows and of group 1, by their number there. */
export const ADD = 0;
export const OR = 1;
export const AND = 4;
export const SUB = 5;
export const XOR = 6;
export const CMP = 7;
/** Not of that row, but computed like AND. */
export const TEST = 8;
export const OPERATIONS: readonly number[] = [ADD, OR, AND, SUB, XOR, CMP];

function parity(value: bigint): bigint {
  let bits = Number(value & 0xffn);
  bits ^= bits >> 4;
  bits ^= bits >> 2;
  bits ^= bits >> 1;
  return bits & 1 ? 0n : PF;
}

/** One of the operations on `size`-bit operands: the result and the status flags. AF of the logical ones is 0. */
export function compute(
  operation: number,
  size: 32 | 64,
  left: bigint,
  right: bigint,
): { result: bigint; flags: bigint } {
  const mask = size === 64 ? MASK64 : MASK32;
  const sign = 1n << BigInt(size - 1);
  const a = left & mask;
  const b = right & mask;
  let result: bigint;
  let flags = 0n;
  if (operation === ADD) {
    result = (a + b) & mask;
    if (result < a) flags |= CF;
    if ((a ^ result) & (b ^ result) & sign) flags |= OF;
    flags |= (a ^ b ^ result) & AF;
  } else if (operation === SUB || operation === CMP) {
    result = (a - b) & mask;
    if (a < b) flags |= CF;
    if ((a ^ b) & (a ^ result) & sign) flags |= OF;
    flags |= (a ^ b ^ result) & AF;
  } else {
    result = operation === OR ? a | b : operation === XOR ? a ^ b : a & b;
  }
  if (result === 0n) flags |= ZF;
  if (result & sign) flags |= SF;
  return { result, flags: flags | parity(result) };
}

import { getS32, getU16, getU32, getU64 } from '../abi/bytes.ts';
import { followingOf, isLegacyPrefix, isRex } from './encodings.ts';

/** No instruction is longer, in bytes. */
export const MAX_LENGTH = 15;

/** An operand that a ModRM byte tells. Registers are numbers, as in NUMBERED_REGISTERS. */
export interface ModRm {
  /** With REX.R. Of groups, the lower three bits tell the operation. */
  readonly reg: number;
  /** The register, or undefined for memory. */
  readonly rm: number | undefined;
  /** Memory: base, index and scale; relative to the next instruction when `base` is 'rip'. */
  readonly base: number | 'rip' | undefined;
  readonly index: number | undefined;
  readonly scale: 1 | 2 | 4 | 8;
  /** Sign-extended. With EVEX, one of a byte is not multiplied yet. */
  readonly displacement: number;
}

/** How one instruction of 64-bit code is encoded. */
export interface Instruction {
  /** In bytes. */
  readonly length: number;
  /** 0: one byte, 1: 0F, 2: 0F 38, 3: 0F 3A; VEX, EVEX and XOP have more. */
  readonly map: number;
  readonly opcode: number;
  /** Prefixes in front of REX, in order. */
  readonly prefixes: readonly number[];
  /** The REX byte, 0 without one. */
  readonly rex: number;
  /** Whether VEX, EVEX or XOP stands in front of the opcode. */
  readonly vector: boolean;
  readonly modRm: ModRm | undefined;
  /** The immediate or distance, sign-extended from its size; 0 without one. Of `enter`: its first one. */
  readonly immediate: bigint;
  /** Bytes of the immediate or distance, and where it is. */
  readonly immediateSize: number;
  readonly immediateAt: number;
  /** Whether the immediate is the distance from the next instruction to where a branch leads. */
  readonly relative: boolean;
}

/** What stands in front of the opcode. `at` is the opcode's place. */
interface Front {
  readonly at: number;
  readonly prefixes: readonly number[];
  readonly rex: number;
  readonly map: number;
  readonly vector: boolean;
}

/**
 * Decodes the instruction of 64-bit code at `at`; undefined when there is none, or the bytes end before it does. Not all
 * that the processor refuses is told apart, such as LOCK where it is not allowed.
 */
export function decode(bytes: Uint8Array, at = 0): Instruction | undefined {
  const end = Math.min(bytes.length, at + MAX_LENGTH);
  const front = frontOf(bytes, at, end);
  if (front.at >= end) return undefined;
  const { map, prefixes, rex, vector } = front;
  const opcode = bytes[front.at]!;
  const following = followingOf(map, opcode);
  if (following === '-') return undefined;
  let next = front.at + 1;
  let modRm: ModRm | undefined;
  if (HAS_MODRM.has(following)) {
    const operand = modRmAt(bytes, next, end, rex, following === 'R');
    if (operand === undefined) return undefined;
    [modRm, next] = operand;
  }
  const sizes = immediateSizes(following, prefixes, rex, modRm?.reg ?? 0);
  const length = next + sizes[0] + sizes[1] - at;
  if (at + length > end) return undefined;
  return {
    length,
    map,
    opcode,
    prefixes,
    rex,
    vector,
    modRm,
    immediate: signed(bytes, next, sizes[0]),
    immediateSize: sizes[0],
    immediateAt: next,
    relative: following === 'j' || following === 'J',
  };
}

function frontOf(bytes: Uint8Array, from: number, end: number): Front {
  const prefixes: number[] = [];
  let at = from;
  let rex = 0;
  for (; at < end; at++) {
    const byte = bytes[at]!;
    if (isLegacyPrefix(byte)) {
      prefixes.push(byte);
      // REX counts only right in front of the opcode.
      rex = 0;
    } else if (isRex(byte)) rex = byte;
    else break;
  }
  const plain = { at, prefixes, rex, map: 0, vector: false };
  switch (bytes[at]) {
    case 0x0f: {
      const map = bytes[at + 1] === 0x38 ? 2 : bytes[at + 1] === 0x3a ? 3 : 1;
      return { ...plain, at: at + (map === 1 ? 1 : 2), map };
    }
    // VEX, VEX, EVEX, and XOP unless it is the pop that has this opcode.
    case 0xc5:
      return { ...plain, at: at + 2, map: 1, vector: true, rex: extensions(bytes[at + 1]!, 4) };
    case 0xc4:
      return {
        ...plain,
        at: at + 3,
        map: mapOf(bytes[at + 1]!, 0x1f),
        vector: true,
        rex: extensions(bytes[at + 1]!, 7),
      };
    case 0x62:
      return {
        ...plain,
        at: at + 4,
        map: mapOf(bytes[at + 1]!, 7),
        vector: true,
        rex: extensions(bytes[at + 1]!, 7),
      };
    case 0x8f:
      if ((bytes[at + 1]! & 0x1f) < 8) return plain;
      return {
        ...plain,
        at: at + 3,
        map: bytes[at + 1]! & 0x1f,
        vector: true,
        rex: extensions(bytes[at + 1]!, 7),
      };
    default:
      return plain;
  }
}

/** R, X and B of a vector prefix are those of REX, inverted. */
function extensions(byte: number, bits: number): number {
  return 0x40 | ((~byte >> 5) & bits);
}

/** A vector prefix never means the map of one-byte opcodes. */
function mapOf(byte: number, bits: number): number {
  return byte & bits || NO_MAP;
}

const NO_MAP = 0x20;

const HAS_MODRM = new Set([...'MmZgGxR']);

function modRmAt(
  bytes: Uint8Array,
  at: number,
  end: number,
  rex: number,
  isRegister: boolean,
): [ModRm, number] | undefined {
  if (at >= end) return undefined;
  const byte = bytes[at]!;
  const mode = isRegister ? 3 : byte >> 6;
  const reg = ((byte >> 3) & 7) | (rex & 4 ? 8 : 0);
  const b = rex & 1 ? 8 : 0;
  const low = byte & 7;
  if (mode === 3)
    return [{ reg, rm: low | b, base: undefined, index: undefined, scale: 1, displacement: 0 }, at + 1];
  let next = at + 1;
  let base: ModRm['base'] = low | b;
  let index: number | undefined;
  let scale: ModRm['scale'] = 1;
  let wide = mode === 2;
  if (low === 4) {
    if (next >= end) return undefined;
    const sib = bytes[next++]!;
    scale = (1 << (sib >> 6)) as ModRm['scale'];
    index = ((sib >> 3) & 7) | (rex & 2 ? 8 : 0);
    if (index === 4) index = undefined;
    base = (sib & 7) | b;
    if ((sib & 7) === 5 && mode === 0) {
      base = undefined;
      wide = true;
    }
  } else if (low === 5 && mode === 0) {
    base = 'rip';
    wide = true;
  }
  const size = wide ? 4 : mode;
  if (next + size > end) return undefined;
  return [
    { reg, rm: undefined, base, index, scale, displacement: Number(signed(bytes, next, size)) },
    next + size,
  ];
}

/** Bytes of the immediate, and of the second one that few instructions have. */
function immediateSizes(
  following: string,
  prefixes: readonly number[],
  rex: number,
  reg: number,
): readonly [number, number] {
  const wide = (rex & 8) !== 0;
  const z = prefixes.includes(0x66) && !wide ? 2 : 4;
  const group = (reg & 6) === 0;
  switch (following) {
    case 'b':
    case 'm':
    case 'J':
      return [1, 0];
    case 'w':
      return [2, 0];
    case 'j':
      return [4, 0];
    case 'z':
    case 'Z':
      return [z, 0];
    case 'v':
      return [wide ? 8 : z, 0];
    case 'o':
      return [prefixes.includes(0x67) ? 4 : 8, 0];
    case 'e':
      return [2, 1];
    case 'g':
      return [group ? 1 : 0, 0];
    case 'G':
      return [group ? z : 0, 0];
    case 'x':
      return prefixes.includes(0x66) || prefixes.includes(0xf2) ? [1, 1] : [0, 0];
    default:
      return [0, 0];
  }
}

function signed(bytes: Uint8Array, at: number, size: number): bigint {
  switch (size) {
    case 0:
      return 0n;
    case 1:
      return BigInt((bytes[at]! << 24) >> 24);
    case 2:
      return BigInt((getU16(bytes, at) << 16) >> 16);
    case 4:
      return BigInt(getS32(bytes, at));
    default:
      return BigInt.asIntN(64, getU64(bytes, at));
  }
}

const ENDBR64 = 0xfa1e0ff3;

/** Where the code of a function starts that may have an endbr64 (CET) in front of it. */
export function afterEndbr(bytes: Uint8Array, at: number): number {
  return at + 4 <= bytes.length && getU32(bytes, at) === ENDBR64 ? at + 4 : at;
}

/** Arithmetic flags as in rflags. */
export const CF = 1;
export const PF = 4;
export const AF = 16;
export const ZF = 64;
export const SF = 128;
export const OF = 2048;
export const ALL = CF | PF | AF | ZF | SF | OF;

/** An instruction to try, and which flags are defined after it. */
export interface Sample {
  readonly kind: string;
  readonly bytes: readonly number[];
  readonly flags: number;
}

/** A random number generator that gives the same numbers again for the same seed (xorshift32). */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed | 0 || 1;
  }

  /** An integer from 0 to below `limit`. */
  below(limit: number): number {
    let x = this.#state;
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    this.#state = x;
    return (x >>> 0) % limit;
  }

  pick<T>(from: readonly T[]): T {
    return from[this.below(from.length)]!;
  }

  /** 64 bits, often small, near a power of two, or all ones. */
  value(): bigint {
    const shape = this.below(6);
    let value = 0n;
    for (let i = 0; i < 4; i++) value = (value << 16n) | BigInt(this.below(0x10000));
    if (shape === 0) return BigInt.asUintN(64, BigInt(this.below(5)) - 2n);
    if (shape === 1) return value & 0xffffffffn;
    if (shape === 2) return value & 0xffn;
    if (shape === 3) return BigInt.asUintN(64, (1n << BigInt(this.below(64))) - BigInt(this.below(3)));
    return value;
  }
}

/** Registers that address memory: rbx points at the data; rsi is a small index. rsp and rbp point there too. */
export const BASE = 3;
export const INDEX = 6;
/** Operands are chosen from the others, so that addresses stay where they are. */
const OPERANDS = [0, 1, 2, 7, 8, 9, 10, 11, 12, 13, 14, 15] as const;

/** An operand size with its prefixes. */
interface Size {
  readonly bits: 8 | 16 | 32 | 64;
  readonly wide: boolean;
}

const SIZES: readonly Size[] = [
  { bits: 8, wide: false },
  { bits: 16, wide: true },
  { bits: 32, wide: true },
  { bits: 64, wide: true },
];

class Encoder {
  readonly random: Random;

  constructor(random: Random) {
    this.random = random;
  }

  byte(): number {
    return this.random.below(256);
  }

  bytes(count: number): number[] {
    return Array.from({ length: count }, () => this.byte());
  }

  /** Bytes of an immediate of the operand size: at most four. */
  immediate(bits: number): number[] {
    return this.bytes(Math.min(bits, 32) / 8);
  }

  /**
   * An instruction with a ModRM byte: prefixes, opcode, ModRM and address. `reg` is a register number, or the
   * extension of the opcode when `extension`.
   */
  modrm(
    size: Size,
    opcode: readonly number[],
    reg: number,
    extension: boolean,
    memoryOnly = false,
  ): number[] {
    const { random } = this;
    const out: number[] = [];
    if (size.bits === 16) out.push(0x66);
    const r = extension || reg < 8 ? 0 : 4;
    let rex = (size.bits === 64 ? 8 : 0) | r;
    let tail: number[];
    if (memoryOnly || random.below(3) === 0) {
      const address = this.address(reg & 7);
      rex |= address.rex;
      tail = address.bytes;
    } else {
      const rm = random.pick(OPERANDS);
      if (rm >= 8) rex |= 1;
      tail = [0xc0 | ((reg & 7) << 3) | (rm & 7)];
    }
    // Without REX the byte registers 4 to 7 are ah, ch, dh, bh: bh is part of the base.
    if (rex !== 0 || size.bits === 8) out.push(0x40 | rex);
    return [...out, ...opcode, ...tail];
  }

  /** ModRM, SIB and displacement of an operand near the base register. */
  address(reg: number): { rex: number; bytes: number[] } {
    const { random } = this;
    const displacement = random.below(128) & 0xff;
    switch (random.below(4)) {
      case 0:
        return { rex: 0, bytes: [(reg << 3) | BASE] };
      case 1:
        return { rex: 0, bytes: [0x40 | (reg << 3) | BASE, (displacement - 64) & 0xff] };
      case 2: {
        const low = displacement;
        return { rex: 0, bytes: [0x80 | (reg << 3) | BASE, low, 0, 0, 0] };
      }
      default: {
        const scale = random.below(4);
        return { rex: 0, bytes: [0x44 | (reg << 3), (scale << 6) | (INDEX << 3) | BASE, displacement & 31] };
      }
    }
  }

  register(): number {
    return this.random.pick(OPERANDS);
  }

  size(from: readonly Size[] = SIZES): Size {
    return this.random.pick(from);
  }
}

type Make = (e: Encoder) => Sample;

const NAMES = ['add', 'or', 'adc', 'sbb', 'and', 'sub', 'xor', 'cmp'];
const isLogic = (operation: number) => operation === 1 || operation === 4 || operation === 6;
const arithmeticFlags = (operation: number) => (isLogic(operation) ? ALL & ~AF : ALL);
const WIDE = SIZES.filter((size) => size.wide);

function shiftFlags(operation: number, count: number, bits: number): number {
  const masked = count & (bits === 64 ? 63 : 31);
  if (masked === 0) return ALL;
  const overflow = masked === 1 ? OF : 0;
  // ROL, ROR, RCL and RCR leave the other flags alone.
  if (operation < 4) return (ALL & ~OF) | overflow;
  const carry = masked <= bits || operation === 7 ? CF : 0;
  return PF | ZF | SF | carry | overflow;
}

const arithmetic: Make = (e) => {
  const operation = e.random.below(8);
  const size = e.size();
  const direction = e.random.below(2) * 2;
  const bytes = e.modrm(size, [8 * operation + direction + (size.wide ? 1 : 0)], e.register(), false);
  return { kind: NAMES[operation]!, bytes, flags: arithmeticFlags(operation) };
};

const arithmeticImmediate: Make = (e) => {
  const operation = e.random.below(8);
  const size = e.size();
  const short = !size.wide || e.random.below(2) === 0;
  const opcode = size.wide ? (short ? 0x83 : 0x81) : 0x80;
  const bytes = e.modrm(size, [opcode], operation, true);
  bytes.push(...(short ? [e.byte()] : e.immediate(size.bits)));
  return { kind: `${NAMES[operation]} imm`, bytes, flags: arithmeticFlags(operation) };
};

const unary: Make = (e) => {
  const size = e.size();
  const operation = e.random.below(4);
  const [opcode, extension] = [
    [0xf6, 2],
    [0xf6, 3],
    [0xfe, 0],
    [0xfe, 1],
  ][operation]!;
  const kind = ['not', 'neg', 'inc', 'dec'][operation]!;
  return { kind, bytes: e.modrm(size, [opcode! + (size.wide ? 1 : 0)], extension!, true), flags: ALL };
};

const test: Make = (e) => {
  const size = e.size();
  if (e.random.below(2) === 0) {
    const bytes = e.modrm(size, [size.wide ? 0x85 : 0x84], e.register(), false);
    return { kind: 'test', bytes, flags: ALL & ~AF };
  }
  const bytes = e.modrm(size, [size.wide ? 0xf7 : 0xf6], 0, true);
  return { kind: 'test imm', bytes: [...bytes, ...e.immediate(size.bits)], flags: ALL & ~AF };
};

const shift: Make = (e) => {
  const operation = e.random.below(8);
  const size = e.size();
  const count = e.random.below(3) === 0 ? e.byte() : e.random.below(70);
  const one = e.random.below(5) === 0;
  const bytes = e.modrm(size, [(one ? 0xd0 : 0xc0) + (size.wide ? 1 : 0)], operation, true);
  if (!one) bytes.push(count);
  const kind = ['rol', 'ror', 'rcl', 'rcr', 'shl', 'shr', 'sal', 'sar'][operation]!;
  return { kind, bytes, flags: shiftFlags(operation, one ? 1 : count, size.bits) };
};

const multiply: Make = (e) => {
  const size = e.size();
  const signed = e.random.below(2);
  const bytes = e.modrm(size, [size.wide ? 0xf7 : 0xf6], 4 + signed, true);
  return { kind: signed ? 'imul' : 'mul', bytes, flags: CF | OF };
};

const divide: Make = (e) => {
  const size = e.size();
  const signed = e.random.below(2);
  const bytes = e.modrm(size, [size.wide ? 0xf7 : 0xf6], 6 + signed, true);
  return { kind: signed ? 'idiv' : 'div', bytes, flags: 0 };
};

const multiplyTwo: Make = (e) => {
  const size = e.size(WIDE);
  switch (e.random.below(3)) {
    case 0:
      return { kind: 'imul r, rm', bytes: e.modrm(size, [0x0f, 0xaf], e.register(), false), flags: CF | OF };
    case 1: {
      const bytes = [...e.modrm(size, [0x6b], e.register(), false), e.byte()];
      return { kind: 'imul r, rm, imm8', bytes, flags: CF | OF };
    }
    default: {
      const bytes = [...e.modrm(size, [0x69], e.register(), false), ...e.immediate(size.bits)];
      return { kind: 'imul r, rm, imm', bytes, flags: CF | OF };
    }
  }
};

const move: Make = (e) => {
  const size = e.size();
  const choice = e.random.below(4);
  if (choice === 0) {
    const bytes = [...e.modrm(size, [size.wide ? 0xc7 : 0xc6], 0, true), ...e.immediate(size.bits)];
    return { kind: 'mov imm', bytes, flags: ALL };
  }
  if (choice === 1) {
    return { kind: 'xchg', bytes: e.modrm(size, [size.wide ? 0x87 : 0x86], e.register(), false), flags: ALL };
  }
  const opcode = 0x88 + e.random.below(2) * 2 + (size.wide ? 1 : 0);
  return { kind: 'mov', bytes: e.modrm(size, [opcode], e.register(), false), flags: ALL };
};

const extend: Make = (e) => {
  const size = e.size(WIDE);
  const opcode = e.random.pick([0xb6, 0xb7, 0xbe, 0xbf, 0x63]);
  if (opcode === 0x63) {
    const bytes = e.modrm({ bits: 64, wide: true }, [0x63], e.register(), false);
    return { kind: 'movsxd', bytes, flags: ALL };
  }
  // A byte source without REX could be ah to bh.
  const bytes = e.modrm(size, [0x0f, opcode], 8 + e.random.below(8), false);
  return { kind: 'movzx/movsx', bytes, flags: ALL };
};

const lea: Make = (e) => {
  const bytes = e.modrm(e.size(WIDE), [0x8d], e.register(), false, true);
  return { kind: 'lea', bytes, flags: ALL };
};

const conditional: Make = (e) => {
  const condition = e.random.below(16);
  if (e.random.below(2) === 0) {
    const bytes = e.modrm(e.size(WIDE), [0x0f, 0x40 + condition], e.register(), false);
    return { kind: 'cmov', bytes, flags: ALL };
  }
  return { kind: 'setcc', bytes: e.modrm(SIZES[0]!, [0x0f, 0x90 + condition], 0, true), flags: ALL };
};

const bitTest: Make = (e) => {
  const size = e.size(WIDE);
  const operation = e.random.below(4);
  const bytes = [...e.modrm(size, [0x0f, 0xba], 4 + operation, true), e.byte()];
  return { kind: ['bt', 'bts', 'btr', 'btc'][operation]!, bytes, flags: CF };
};

const bitTestRegister: Make = (e) => {
  const operation = e.random.below(4);
  // The bit number in rsi is small, so that a memory operand stays near the base.
  const bytes = e.modrm(e.size(WIDE), [0x0f, 0xa3 + 8 * operation], INDEX, false);
  return { kind: `${['bt', 'bts', 'btr', 'btc'][operation]} reg`, bytes, flags: CF };
};

const scan: Make = (e) => {
  const size = e.size(WIDE);
  const [kind, prefix, opcode, flags] = e.random.pick([
    ['bsf', 0, 0xbc, ZF],
    ['bsr', 0, 0xbd, ZF],
    ['tzcnt', 0xf3, 0xbc, ZF | CF],
    ['lzcnt', 0xf3, 0xbd, ZF | CF],
  ] as const);
  const bytes = e.modrm(size, [0x0f, opcode], e.register(), false);
  return { kind, bytes: prefix ? [prefix, ...bytes] : bytes, flags };
};

const doubleShift: Make = (e) => {
  const size = e.size(WIDE);
  const left = e.random.below(2) === 0;
  const count = e.random.below(size.bits === 16 ? 17 : 70);
  const masked = count & (size.bits === 64 ? 63 : 31);
  const bytes = [...e.modrm(size, [0x0f, left ? 0xa4 : 0xac], e.register(), false), count];
  const flags = masked === 0 ? ALL : CF | PF | ZF | SF | (masked === 1 ? OF : 0);
  return { kind: left ? 'shld' : 'shrd', bytes, flags };
};

const exchange: Make = (e) => {
  const [kind, opcode] = e.random.pick([
    ['cmpxchg', 0xb0],
    ['xadd', 0xc0],
  ] as const);
  // libunicorn2 clears the upper half of a 32-bit register that CMPXCHG does not write; processors do not.
  const size = e.size(kind === 'cmpxchg' ? SIZES.filter(({ bits }) => bits !== 32) : SIZES);
  const bytes = e.modrm(size, [0x0f, opcode + (size.wide ? 1 : 0)], e.register(), false);
  return { kind, bytes, flags: ALL };
};

const swap: Make = (e) => {
  const register = e.register();
  const rex = (e.random.below(2) === 0 ? 0x48 : 0x40) | (register >> 3);
  return { kind: 'bswap', bytes: [rex, 0x0f, 0xc8 | (register & 7)], flags: ALL };
};

const stack: Make = (e) => {
  const register = e.register();
  const rex = register >= 8 ? [0x41] : [];
  switch (e.random.below(5)) {
    case 0:
      return { kind: 'push', bytes: [...rex, 0x50 | (register & 7)], flags: ALL };
    case 1:
      return { kind: 'pop', bytes: [...rex, 0x58 | (register & 7)], flags: ALL };
    case 2:
      return { kind: 'push imm', bytes: [0x68, ...e.bytes(4)], flags: ALL };
    case 3:
      return { kind: 'push rm', bytes: [0xff, ...e.address(6).bytes], flags: ALL };
    default:
      return { kind: 'pop rm', bytes: [0x8f, ...e.address(0).bytes], flags: ALL };
  }
};

const single: Make = (e) => {
  const [kind, ...bytes] = e.random.pick([
    ['cbw', 0x66, 0x98],
    ['cwde', 0x98],
    ['cdqe', 0x48, 0x98],
    ['cwd', 0x66, 0x99],
    ['cdq', 0x99],
    ['cqo', 0x48, 0x99],
    ['lahf', 0x9f],
    ['sahf', 0x9e],
    ['cmc', 0xf5],
    ['clc', 0xf8],
    ['stc', 0xf9],
    ['leave', 0xc9],
    ['pushf', 0x9c],
    ['nop', 0x0f, 0x1f, 0x00],
  ] as [string, ...number[]][]);
  return { kind: kind!, bytes, flags: ALL };
};

/** String instructions; rsi and rdi are set to addresses for them, rcx is small. */
const string: Make = (e) => {
  const opcode = e.random.pick([0xa4, 0xa6, 0xaa, 0xac, 0xae]) + e.random.below(2);
  const prefix = e.random.pick([[], [0x66], [0x48]]);
  const repeat = e.random.pick([[], [0xf3], [0xf2]]);
  const movs = opcode < 0xa6 || (opcode >= 0xaa && opcode < 0xae);
  const rep = movs && repeat[0] === 0xf2 ? [0xf3] : repeat;
  const bytes = prefix[0] === 0x48 ? [...rep, ...prefix, opcode] : [...prefix, ...rep, opcode];
  return { kind: 'string', bytes, flags: ALL };
};

const MAKERS: readonly Make[] = [
  arithmetic,
  arithmetic,
  arithmeticImmediate,
  unary,
  test,
  shift,
  shift,
  multiply,
  divide,
  multiplyTwo,
  move,
  extend,
  lea,
  conditional,
  bitTest,
  bitTestRegister,
  scan,
  doubleShift,
  exchange,
  swap,
  stack,
  single,
  string,
];

/** A random instruction. */
export function sample(random: Random): Sample {
  return random.pick(MAKERS)(new Encoder(random));
}

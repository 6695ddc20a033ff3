import { getS32, getU32, getU64 } from '../abi/bytes.ts';
import { NUMBERED_REGISTERS } from '../abi/index.ts';
import { CMP, compute, MASK32, MASK64, OPERATIONS, STATUS, TEST } from './alu.ts';
import type { Registers } from './registers.ts';

/** An instruction that can be carried out on register values. Its effect on memory, if any, is one stack slot. */
export interface Instruction {
  /** In bytes. */
  readonly length: number;
  /** Whether eight bytes are stored below rsp, or loaded from it. */
  readonly stack: 'none' | 'push' | 'pop';
  /** Has a meaning for control-flow enforcement (CET) that register values do not show. */
  readonly tracked: boolean;
  /**
   * Changes all registers as the processor does, rip included. `top` is what `pop` loads.
   *
   * @returns what `push` stores at the new rsp.
   */
  run(registers: Registers, top: bigint): bigint;
}

/** What stands in front of the opcode, and the bytes from there on. */
interface Encoding {
  readonly bytes: Uint8Array;
  /** Of the opcode. */
  readonly at: number;
  /** 0x66: 16-bit operands. */
  readonly short: boolean;
  /** REX.W: 64-bit operands; 32-bit ones without. */
  readonly size: 32 | 64;
  /** 8 when the bit that extends ModRM.reg, the SIB index, and ModRM.rm or the opcode's register is set. */
  readonly r: number;
  readonly x: number;
  readonly b: number;
}

interface ModRm {
  readonly reg: number;
  /** The register, or undefined for memory. */
  readonly rm: number | undefined;
  /** Memory: base, index and scale; rip-relative when `base` is 'rip'. */
  readonly base: number | 'rip' | undefined;
  readonly index: number | undefined;
  readonly scale: bigint;
  readonly displacement: bigint;
  /** The first byte after it. */
  readonly end: number;
}

function modRm({ bytes, r, x, b }: Encoding, at: number): ModRm | undefined {
  const byte = bytes[at];
  if (byte === undefined) return undefined;
  const mode = byte >> 6;
  const reg = ((byte >> 3) & 7) | r;
  const low = byte & 7;
  const operand = { reg, rm: undefined, base: undefined, index: undefined, scale: 1n, displacement: 0n };
  if (mode === 3) return { ...operand, rm: low | b, end: at + 1 };
  let next = at + 1;
  let base: number | 'rip' | undefined = low | b;
  let index: number | undefined;
  let scale = 1n;
  let wide = mode === 2;
  if (low === 4) {
    const sib = bytes[next++];
    if (sib === undefined) return undefined;
    scale = 1n << BigInt(sib >> 6);
    index = ((sib >> 3) & 7) | x;
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
  const size = wide ? 4 : mode === 1 ? 1 : 0;
  const displacement = immediate(bytes, next, size);
  if (displacement === undefined) return undefined;
  return { reg, rm: undefined, base, index, scale, displacement, end: next + size };
}

/** A sign-extended immediate of 0, 1 or 4 bytes; undefined when the bytes end before it does. */
function immediate(bytes: Uint8Array, at: number, size: number): bigint | undefined {
  if (at + size > bytes.length) return undefined;
  if (size === 0) return 0n;
  return BigInt(size === 1 ? (bytes[at]! << 24) >> 24 : getS32(bytes, at));
}

function addressOf(registers: Registers, operand: ModRm, next: bigint): bigint {
  const { base, index, scale, displacement } = operand;
  const from = base === 'rip' ? next : base === undefined ? 0n : registers[NUMBERED_REGISTERS[base]!];
  const step = index === undefined ? 0n : registers[NUMBERED_REGISTERS[index]!] * scale;
  return (from + step + displacement) & MASK64;
}

function instruction(
  length: number,
  effect: (registers: Registers, top: bigint) => unknown,
  more: { stack?: 'push' | 'pop'; tracked?: boolean } = {},
): Instruction {
  const step = BigInt(length);
  return {
    length,
    stack: more.stack ?? 'none',
    tracked: more.tracked ?? false,
    run(registers, top) {
      registers.rip += step;
      const stored = effect(registers, top);
      return typeof stored === 'bigint' ? stored : 0n;
    },
  };
}

function nop(length: number, tracked = false): Instruction {
  return instruction(length, () => {}, { tracked });
}

/** Writing 32 bits clears the upper half. */
function assign(registers: Registers, register: number, size: 32 | 64, value: bigint): void {
  registers[NUMBERED_REGISTERS[register]!] = size === 64 ? value & MASK64 : value & MASK32;
}

function operate(
  length: number,
  operation: number,
  size: 32 | 64,
  target: number,
  source: (registers: Registers) => bigint,
): Instruction {
  return instruction(length, (registers) => {
    const { result, flags } = compute(
      operation,
      size,
      registers[NUMBERED_REGISTERS[target]!],
      source(registers),
    );
    registers.rflags = (registers.rflags & ~STATUS) | flags;
    if (operation !== CMP && operation !== TEST) assign(registers, target, size, result);
  });
}

function push(length: number, value: (registers: Registers) => bigint): Instruction {
  return instruction(
    length,
    (registers) => {
      const stored = value(registers);
      registers.rsp -= 8n;
      return stored;
    },
    { stack: 'push' },
  );
}

/** Operation `reg` or `rm` with the other one. */
function operateRegisters(encoding: Encoding, operation: number, toRm: boolean): Instruction | undefined {
  const operand = modRm(encoding, encoding.at + 1);
  if (operand?.rm === undefined) return undefined;
  const { reg, rm, end } = operand;
  const source = NUMBERED_REGISTERS[toRm ? reg : rm]!;
  return operate(end, operation, encoding.size, toRm ? rm : reg, (registers) => registers[source]);
}

function moveRegisters(encoding: Encoding, toRm: boolean): Instruction | undefined {
  const operand = modRm(encoding, encoding.at + 1);
  if (operand?.rm === undefined) return undefined;
  const { reg, rm, end } = operand;
  return instruction(end, (registers) => {
    assign(registers, toRm ? rm : reg, encoding.size, registers[NUMBERED_REGISTERS[toRm ? reg : rm]!]);
  });
}

function operateImmediate(encoding: Encoding, immediateSize: 1 | 4): Instruction | undefined {
  const operand = modRm(encoding, encoding.at + 1);
  if (operand?.rm === undefined) return undefined;
  const operation = operand.reg & 7;
  const value = immediate(encoding.bytes, operand.end, immediateSize);
  if (value === undefined || !OPERATIONS.includes(operation)) return undefined;
  return operate(operand.end + immediateSize, operation, encoding.size, operand.rm, () => value);
}

function moveImmediate(encoding: Encoding): Instruction | undefined {
  const { bytes, at, size, b } = encoding;
  const register = (bytes[at]! & 7) | b;
  const length = at + 1 + size / 8;
  if (length > bytes.length) return undefined;
  const value = size === 64 ? getU64(bytes, at + 1) : BigInt(getU32(bytes, at + 1));
  return instruction(length, (registers) => assign(registers, register, size, value));
}

function loadAddress(encoding: Encoding): Instruction | undefined {
  const operand = modRm(encoding, encoding.at + 1);
  if (!operand || operand.rm !== undefined) return undefined;
  return instruction(operand.end, (registers) => {
    // rip is at the next instruction already.
    assign(registers, operand.reg, encoding.size, addressOf(registers, operand, registers.rip));
  });
}

function jump(encoding: Encoding, size: 1 | 4): Instruction | undefined {
  const distance = immediate(encoding.bytes, encoding.at + 1, size);
  if (distance === undefined) return undefined;
  return instruction(encoding.at + 1 + size, (registers) => {
    registers.rip += distance;
  });
}

function call(encoding: Encoding): Instruction | undefined {
  const distance = immediate(encoding.bytes, encoding.at + 1, 4);
  if (distance === undefined) return undefined;
  return instruction(
    encoding.at + 5,
    (registers) => {
      const back = registers.rip;
      registers.rip += distance;
      registers.rsp -= 8n;
      return back;
    },
    { stack: 'push', tracked: true },
  );
}

function pushImmediate(encoding: Encoding, size: 1 | 4): Instruction | undefined {
  const value = immediate(encoding.bytes, encoding.at + 1, size);
  if (value === undefined) return undefined;
  return push(encoding.at + 1 + size, () => value & MASK64);
}

type Decode = (encoding: Encoding) => Instruction | undefined;

const ONE_BYTE = new Map<number, Decode>([
  [0x68, (encoding) => pushImmediate(encoding, 4)],
  [0x6a, (encoding) => pushImmediate(encoding, 1)],
  [0x81, (encoding) => operateImmediate(encoding, 4)],
  [0x83, (encoding) => operateImmediate(encoding, 1)],
  [0x85, (encoding) => operateRegisters(encoding, TEST, true)],
  [0x89, (encoding) => moveRegisters(encoding, true)],
  [0x8b, (encoding) => moveRegisters(encoding, false)],
  [0x8d, loadAddress],
  // With REX.B it exchanges r8 and rax.
  [0x90, ({ at, b }) => (b === 0 ? nop(at + 1) : undefined)],
  [0xe8, call],
  [0xe9, (encoding) => jump(encoding, 4)],
  [0xeb, (encoding) => jump(encoding, 1)],
]);
for (const operation of OPERATIONS) {
  ONE_BYTE.set(operation * 8 + 1, (encoding) => operateRegisters(encoding, operation, true));
  ONE_BYTE.set(operation * 8 + 3, (encoding) => operateRegisters(encoding, operation, false));
}
for (let register = 0; register < 8; register++) {
  ONE_BYTE.set(0x50 + register, ({ at, b }) => {
    const source = NUMBERED_REGISTERS[register | b]!;
    return push(at + 1, (registers) => registers[source]);
  });
  ONE_BYTE.set(0x58 + register, ({ at, b }) => {
    const target = NUMBERED_REGISTERS[register | b]!;
    return instruction(
      at + 1,
      (registers, top) => {
        registers.rsp += 8n;
        registers[target] = top;
      },
      { stack: 'pop' },
    );
  });
  ONE_BYTE.set(0xb8 + register, moveImmediate);
}

/** 0F 1F /0: the recommended long nops. */
function longNop(encoding: Encoding): Instruction | undefined {
  const operand = modRm(encoding, encoding.at + 2);
  return operand && (operand.reg & 7) === 0 ? nop(operand.end) : undefined;
}

const ENDBR = [0xf3, 0x0f, 0x1e] as const;

/**
 * Decodes the first instruction of 64-bit code if it is one of those that functions start with: endbr64, nops, push,
 * pop, mov and lea between registers, add, sub, and, or, xor, cmp and test on registers, call and jmp.
 * Undefined for every other one, and when the bytes end before it does.
 */
export function decodeInstruction(bytes: Uint8Array): Instruction | undefined {
  if (ENDBR.every((byte, i) => bytes[i] === byte)) {
    return bytes[3] === 0xfa || bytes[3] === 0xfb ? nop(4, true) : undefined;
  }
  let at = 0;
  let short = false;
  // Operand size, and segments that 64-bit code ignores.
  for (; bytes[at] === 0x66 || bytes[at] === 0x2e || bytes[at] === 0x3e; at++) short ||= bytes[at] === 0x66;
  const prefix = bytes[at]!;
  const rex = prefix >= 0x40 && prefix <= 0x4f ? prefix : 0;
  if (rex) at++;
  const encoding: Encoding = {
    bytes,
    at,
    short,
    size: rex & 8 ? 64 : 32,
    r: rex & 4 ? 8 : 0,
    x: rex & 2 ? 8 : 0,
    b: rex & 1 ? 8 : 0,
  };
  const opcode = bytes[at];
  if (opcode === 0x0f) return bytes[at + 1] === 0x1f ? longNop(encoding) : undefined;
  if (short && opcode !== 0x90) return undefined;
  return opcode === undefined ? undefined : ONE_BYTE.get(opcode)?.(encoding);
}

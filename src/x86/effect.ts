import type { GeneralRegister } from '../abi/state.ts';
import { NUMBERED_REGISTERS } from '../abi/x86.ts';
import { CMP, compute, MASK32, MASK64, OPERATIONS, STATUS, TEST } from './alu.ts';
import { decode, type Instruction, type ModRm } from './instruction.ts';

/** Values of the general registers, rip and rflags, that can be assigned. */
export type RegisterValues = Record<GeneralRegister, bigint>;

/** What an instruction does, when it can be carried out on register values. Its effect on memory, if any, is one stack slot. */
export interface Effect {
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
  run(registers: RegisterValues, top: bigint): bigint;
}

function addressOf(registers: RegisterValues, operand: ModRm, next: bigint): bigint {
  const { base, index, scale, displacement } = operand;
  const from = base === 'rip' ? next : base === undefined ? 0n : registers[NUMBERED_REGISTERS[base]!];
  const step = index === undefined ? 0n : registers[NUMBERED_REGISTERS[index]!] * BigInt(scale);
  return (from + step + BigInt(displacement)) & MASK64;
}

function effect(
  length: number,
  change: (registers: RegisterValues, top: bigint) => unknown,
  more: { stack?: 'push' | 'pop'; tracked?: boolean } = {},
): Effect {
  const step = BigInt(length);
  return {
    length,
    stack: more.stack ?? 'none',
    tracked: more.tracked ?? false,
    run(registers, top) {
      registers.rip += step;
      const stored = change(registers, top);
      return typeof stored === 'bigint' ? stored : 0n;
    },
  };
}

function nop({ length }: Instruction, tracked = false): Effect {
  return effect(length, () => {}, { tracked });
}

/** Of operands: 64 bits with REX.W, else 32. */
function sizeOf({ rex }: Instruction): 32 | 64 {
  return rex & 8 ? 64 : 32;
}

/** The register in the lower three bits of the opcode. */
function opcodeRegister({ opcode, rex }: Instruction): number {
  return (opcode & 7) | (rex & 1 ? 8 : 0);
}

/** Writing 32 bits clears the upper half. */
function assign(registers: RegisterValues, register: number, size: 32 | 64, value: bigint): void {
  registers[NUMBERED_REGISTERS[register]!] = size === 64 ? value & MASK64 : value & MASK32;
}

function operate(
  instruction: Instruction,
  operation: number,
  target: number,
  source: (registers: RegisterValues) => bigint,
): Effect {
  const size = sizeOf(instruction);
  return effect(instruction.length, (registers) => {
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

function push(length: number, value: (registers: RegisterValues) => bigint): Effect {
  return effect(
    length,
    (registers) => {
      const stored = value(registers);
      registers.rsp -= 8n;
      return stored;
    },
    { stack: 'push' },
  );
}

type EffectOf = (instruction: Instruction) => Effect | undefined;

/** Operation `reg` or `rm` with the other one. */
const operateRegisters =
  (operation: number, toRm: boolean): EffectOf =>
  (instruction) => {
    const { reg = 0, rm } = instruction.modRm ?? {};
    if (rm === undefined) return undefined;
    const source = NUMBERED_REGISTERS[toRm ? reg : rm]!;
    return operate(instruction, operation, toRm ? rm : reg, (registers) => registers[source]);
  };

const moveRegisters =
  (toRm: boolean): EffectOf =>
  (instruction) => {
    const { reg = 0, rm } = instruction.modRm ?? {};
    if (rm === undefined) return undefined;
    return effect(instruction.length, (registers) => {
      const value = registers[NUMBERED_REGISTERS[toRm ? reg : rm]!];
      assign(registers, toRm ? rm : reg, sizeOf(instruction), value);
    });
  };

function operateImmediate(instruction: Instruction): Effect | undefined {
  const { modRm, immediate } = instruction;
  const operation = (modRm?.reg ?? 0) & 7;
  if (modRm?.rm === undefined || !OPERATIONS.includes(operation)) return undefined;
  return operate(instruction, operation, modRm.rm, () => immediate);
}

function loadAddress(instruction: Instruction): Effect | undefined {
  const operand = instruction.modRm;
  if (!operand || operand.rm !== undefined) return undefined;
  return effect(instruction.length, (registers) => {
    // rip is at the next instruction already.
    assign(registers, operand.reg, sizeOf(instruction), addressOf(registers, operand, registers.rip));
  });
}

const jump: EffectOf = ({ length, immediate }) =>
  effect(length, (registers) => {
    registers.rip += immediate;
  });

const call: EffectOf = ({ length, immediate }) =>
  effect(
    length,
    (registers) => {
      const back = registers.rip;
      registers.rip += immediate;
      registers.rsp -= 8n;
      return back;
    },
    { stack: 'push', tracked: true },
  );

const pushImmediate: EffectOf = ({ length, immediate }) => push(length, () => immediate & MASK64);

const pushRegister: EffectOf = (instruction) => {
  const source = NUMBERED_REGISTERS[opcodeRegister(instruction)]!;
  return push(instruction.length, (registers) => registers[source]);
};

const popRegister: EffectOf = (instruction) => {
  const target = NUMBERED_REGISTERS[opcodeRegister(instruction)]!;
  return effect(
    instruction.length,
    (registers, top) => {
      registers.rsp += 8n;
      registers[target] = top;
    },
    { stack: 'pop' },
  );
};

const moveImmediate: EffectOf = (instruction) =>
  effect(instruction.length, (registers) =>
    assign(registers, opcodeRegister(instruction), sizeOf(instruction), instruction.immediate),
  );

const ONE_BYTE = new Map<number, EffectOf>([
  [0x68, pushImmediate],
  [0x6a, pushImmediate],
  [0x81, operateImmediate],
  [0x83, operateImmediate],
  [0x85, operateRegisters(TEST, true)],
  [0x89, moveRegisters(true)],
  [0x8b, moveRegisters(false)],
  [0x8d, loadAddress],
  // With REX.B it exchanges r8 and rax.
  [0x90, (instruction) => (instruction.rex & 1 ? undefined : nop(instruction))],
  [0xe8, call],
  [0xe9, jump],
  [0xeb, jump],
]);
for (const operation of OPERATIONS) {
  ONE_BYTE.set(operation * 8 + 1, operateRegisters(operation, true));
  ONE_BYTE.set(operation * 8 + 3, operateRegisters(operation, false));
}
for (let register = 0; register < 8; register++) {
  ONE_BYTE.set(0x50 + register, pushRegister);
  ONE_BYTE.set(0x58 + register, popRegister);
  ONE_BYTE.set(0xb8 + register, moveImmediate);
}

const NOP_OPCODE = 0x90;
const OPERAND_SIZE = 0x66;
const REP = 0xf3;
/** Operand size, and segments that 64-bit code ignores. */
const HARMLESS_PREFIXES = new Set([OPERAND_SIZE, 0x2e, 0x3e]);

/** 0F 1F /0: the recommended long nops; F3 0F 1E FA and FB: endbr64 and endbr32. */
function twoByteEffect(instruction: Instruction): Effect | undefined {
  const { opcode, modRm, prefixes } = instruction;
  if (opcode === 0x1f) {
    const plain = modRm && (modRm.reg & 7) === 0 && prefixes.every((prefix) => HARMLESS_PREFIXES.has(prefix));
    return plain ? nop(instruction) : undefined;
  }
  const isEndbr =
    opcode === 0x1e &&
    modRm?.reg === 7 &&
    (modRm.rm === 2 || modRm.rm === 3) &&
    prefixes.join() === String(REP);
  return isEndbr ? nop(instruction, true) : undefined;
}

/**
 * What the first instruction of 64-bit code does, if it is one of those that functions start with: endbr64, nops, push,
 * pop, mov and lea between registers, add, sub, and, or, xor, cmp and test on registers, call and jmp.
 * Undefined for every other one, and when the bytes end before it does.
 */
export function effectOf(bytes: Uint8Array): Effect | undefined {
  const instruction = decode(bytes);
  if (instruction === undefined || instruction.vector) return undefined;
  const { map, opcode, prefixes } = instruction;
  if (map === 1) return twoByteEffect(instruction);
  if (map !== 0 || !prefixes.every((prefix) => HARMLESS_PREFIXES.has(prefix))) return undefined;
  if (prefixes.includes(OPERAND_SIZE) && opcode !== NOP_OPCODE) return undefined;
  return ONE_BYTE.get(opcode)?.(instruction);
}

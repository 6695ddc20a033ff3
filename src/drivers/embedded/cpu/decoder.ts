import { Op, type Run } from './op.ts';
import { undefinedOpcode } from './raise.ts';
import { CODE_BASE, CS, DS, ES, FS, GS, SEGMENT_BASE, SS, ZERO } from './slots.ts';

/** Operand size: byte, word, doubleword, quadword. */
export type Size = 'b' | 'w' | 'd' | 'q';

/** Completes a decoder's op from the bytes after the opcode, and says how it is executed. */
export type Decode = (d: Decoder) => Run;

/** By opcode; undefined for what is no instruction. */
export type Opcodes = readonly (Decode | undefined)[];

/** Thrown when the instruction continues behind the bytes that there are. */
export const NEEDS_MORE = { signal: 'needs more' } as const;
/** Thrown for an encoding that does not exist. */
const UNDEFINED = { signal: 'undefined' } as const;

/** The longest instruction. */
export const MAX_LENGTH = 15;

/** Prefixes that select a segment. */
const SEGMENT_PREFIX: Readonly<Record<number, number>> = {
  38: ES,
  46: CS,
  54: SS,
  62: DS,
  100: FS,
  101: GS,
};

const raiseUndefined: Run = (c) => undefinedOpcode(c);

/** Finds out what the bytes of one instruction mean. One decoder serves any number of instructions. */
export class Decoder {
  op = new Op(raiseUndefined);
  mode64 = true;
  /** Operand size of instructions that have no byte form of their own: w, d or q. */
  size: 'w' | 'd' | 'q' = 'd';
  rex = 0;
  operand16 = false;
  /** 0xf2, 0xf3 or 0. */
  rep = 0;
  /** Set by instructions that allow a LOCK prefix. */
  lockable = false;
  opcode = 0;
  /** Fields of the ModRM byte, with the bits of REX. `memory` when rm is not a register. */
  mod = 0;
  reg = 0;
  rm = 0;
  memory = false;
  #lock = false;
  #address32 = 0;
  #segmentOverride = -1;
  #ripRelative = false;
  readonly #oneByte: Opcodes;
  readonly #twoByte: Opcodes;
  #bytes: Uint8Array = new Uint8Array();
  #at = 0;
  #end = 0;
  #start = 0;

  /** `twoByte`: the opcodes behind 0F. */
  constructor(oneByte: Opcodes, twoByte: Opcodes) {
    this.#oneByte = oneByte;
    this.#twoByte = twoByte;
  }

  /**
   * Decodes the instruction at `from` in `bytes`, whose offset in the page of code is `offset`. Throws NEEDS_MORE
   * when it does not end before `end`. An instruction that does not exist becomes one that raises #UD.
   */
  decode(bytes: Uint8Array, from: number, end: number, offset: number, mode64: boolean): Op {
    const op = new Op(raiseUndefined);
    this.op = op;
    this.#bytes = bytes;
    this.#start = from;
    this.#at = from;
    this.#end = Math.min(end, from + MAX_LENGTH);
    this.mode64 = mode64;
    op.start = offset;
    try {
      this.#prefixes();
      const run = this.#opcode();
      op.run = this.#lock && !this.lockable ? raiseUndefined : run;
    } catch (signal) {
      if (signal === NEEDS_MORE && end < from + MAX_LENGTH) throw signal;
      if (signal !== UNDEFINED && signal !== NEEDS_MORE) throw signal;
      op.run = raiseUndefined;
    }
    if (op.run === raiseUndefined) op.ends = true;
    op.next = offset + this.#at - from;
    if (this.#ripRelative) this.relativeToPage();
    op.address32 = this.#address32;
    op.rep = this.rep;
    return op;
  }

  #prefixes(): void {
    this.rex = 0;
    this.operand16 = false;
    this.rep = 0;
    this.lockable = false;
    this.#lock = false;
    this.#segmentOverride = -1;
    this.#ripRelative = false;
    let address = false;
    for (;;) {
      const byte = this.byte();
      const segment = SEGMENT_PREFIX[byte];
      if (segment !== undefined) this.#segmentOverride = segment;
      else if (byte === 0x66) this.operand16 = true;
      else if (byte === 0x67) address = true;
      else if (byte === 0xf0) this.#lock = true;
      else if (byte === 0xf2 || byte === 0xf3) this.rep = byte;
      else {
        if (this.mode64 && (byte & 0xf0) === 0x40) {
          this.rex = byte;
          this.opcode = this.byte();
        } else this.opcode = byte;
        break;
      }
    }
    // 16-bit addresses in 32-bit code do not exist here.
    if (address && !this.mode64) throw UNDEFINED;
    this.#address32 = this.mode64 ? (address ? 1 : 0) : 2;
    this.size = (this.rex & 8) !== 0 ? 'q' : this.operand16 ? 'w' : 'd';
  }

  #opcode(): Run {
    let table = this.#oneByte;
    if (this.opcode === 0x0f) {
      table = this.#twoByte;
      this.opcode = this.byte();
    }
    const decode = table[this.opcode];
    if (!decode) throw UNDEFINED;
    return decode(this);
  }

  /** Gives up: there is no such instruction. */
  undefined(): never {
    throw UNDEFINED;
  }

  byte(): number {
    if (this.#at >= this.#end) throw NEEDS_MORE;
    return this.#bytes[this.#at++]!;
  }

  /** A signed byte. */
  signed8(): number {
    return (this.byte() << 24) >> 24;
  }

  unsigned16(): number {
    return this.byte() | (this.byte() << 8);
  }

  signed32(): number {
    return this.unsigned16() | (this.unsigned16() << 16);
  }

  /** Reads an immediate of the operand size (32 bits, sign-extended, for 64) into the op. */
  immediate(size: Size): void {
    const { op } = this;
    op.imm = size === 'b' ? this.signed8() : size === 'w' ? (this.unsigned16() << 16) >> 16 : this.signed32();
    op.immHi = op.imm >> 31;
  }

  /** Reads a signed byte as immediate. */
  immediate8(): void {
    this.op.imm = this.signed8();
    this.op.immHi = this.op.imm >> 31;
  }

  /** Reads the target of a relative branch. */
  relative(size: 'b' | 'd'): void {
    this.op.disp = size === 'b' ? this.signed8() : this.signed32();
    this.op.dispHi = this.op.disp >> 31;
    this.#ripRelative = true;
    this.op.ends = true;
  }

  /** Makes the displacement, which counts from the next instruction, count from the page. */
  relativeToPage(): void {
    const { op } = this;
    const lo = (op.disp + op.next) | 0;
    if (lo >>> 0 < op.disp >>> 0) op.dispHi = (op.dispHi + 1) | 0;
    op.disp = lo;
  }

  /** Reads the offset operand of MOV moffs: an absolute address. */
  absolute(): void {
    const { op } = this;
    op.disp = this.signed32();
    op.dispHi = this.#address32 === 0 ? this.signed32() : 0;
    op.segment = this.segmentBase(DS);
  }

  /** Index of a register operand in the array of its size. */
  register(number: number, size: Size): number {
    if (size === 'b') return this.rex === 0 && number >= 4 ? 8 * (number - 4) + 1 : 8 * number;
    return size === 'w' ? 4 * number : 2 * number;
  }

  /** The register in the low bits of the opcode. */
  opcodeRegister(size: Size): number {
    return this.register((this.opcode & 7) | ((this.rex & 1) << 3), size);
  }

  /** Reads the ModRM byte and what belongs to it. */
  modrm(): void {
    const byte = this.byte();
    this.mod = byte >>> 6;
    this.reg = ((byte >>> 3) & 7) | ((this.rex & 4) << 1);
    this.rm = (byte & 7) | ((this.rex & 1) << 3);
    this.memory = this.mod !== 3;
    if (this.memory) this.#memoryOperand(byte & 7);
  }

  #memoryOperand(rm: number): void {
    const { op } = this;
    let base = this.rm;
    let absolute = false;
    if (rm === 4) {
      const sib = this.byte();
      const index = ((sib >>> 3) & 7) | ((this.rex & 2) << 2);
      if (index !== 4) op.index = 2 * index;
      op.scale = sib >>> 6;
      base = (sib & 7) | ((this.rex & 1) << 3);
      absolute = (sib & 7) === 5 && this.mod === 0;
    } else if (rm === 5 && this.mod === 0) {
      absolute = true;
      this.#ripRelative = this.mode64;
    }
    op.base = absolute ? (this.#ripRelative ? CODE_BASE : ZERO) : 2 * base;
    if (this.mod === 1) op.disp = this.signed8();
    else if (this.mod === 2 || absolute) op.disp = this.signed32();
    op.dispHi = op.disp >> 31;
    op.segment = this.segmentBase(!absolute && (base === 4 || base === 5) ? SS : DS);
  }

  /** Slot of the segment base of a memory operand; only fs and gs have one in 64-bit code. */
  segmentBase(standard: number): number {
    const segment = this.#segmentOverride;
    if (segment === FS || segment === GS) return SEGMENT_BASE + 2 * segment;
    return this.mode64 ? ZERO : SEGMENT_BASE + 2 * (segment < 0 ? standard : segment);
  }

  /** Slot of the base of es, which string instructions write through. */
  get destinationBase(): number {
    return this.mode64 ? ZERO : SEGMENT_BASE + 2 * ES;
  }

  /** Number of bytes decoded so far. */
  get length(): number {
    return this.#at - this.#start;
  }
}

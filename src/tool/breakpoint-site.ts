import { KvmiError } from '../error.ts';
import type { Gpa, Gva } from '../machine/index.ts';
import { PAGE_SIZE } from '../machine/index.ts';
import { type Effect, effectOf } from '../x86/effect.ts';
import type { Breakpoint } from './breakpoint.ts';
import type { GuestMemory } from './memory.ts';

export const INT3 = 0xcc;
const MAX_INSTRUCTION = 15;
/** String instructions, after a REP prefix, are stepped through one element at a time. */
const STRING_OPCODES = new Set([
  0x6c, 0x6d, 0x6e, 0x6f, 0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf,
]);

/**
 * One patched byte of guest memory. Every breakpoint at that byte shares it, also when they got there by
 * different virtual addresses.
 */
export class BreakpointSite {
  readonly gpa: Gpa;
  /** The virtual address by which it was found. */
  readonly gva: Gva;
  /** The byte that int3 replaced. */
  readonly original: number;
  /** Undefined when it has to be single-stepped. */
  instruction: Effect | undefined;
  /** A REP string instruction is done only when rip moves. */
  readonly repeats: boolean;
  readonly breakpoints: Breakpoint[] = [];
  /** Whether int3 is in guest memory. */
  armed = false;
  readonly #memory: GuestMemory;

  private constructor(memory: GuestMemory, gpa: Gpa, gva: Gva, code: Uint8Array) {
    this.#memory = memory;
    this.gpa = gpa;
    this.gva = gva;
    this.original = code[0]!;
    this.instruction = effectOf(code);
    this.repeats = (code[0] === 0xf2 || code[0] === 0xf3) && isString(code);
  }

  /** Reads what is there. Nothing is written yet. */
  static async at(memory: GuestMemory, gpa: Gpa, gva: Gva): Promise<BreakpointSite> {
    const size = Math.min(MAX_INSTRUCTION, PAGE_SIZE - (gpa % PAGE_SIZE));
    return new BreakpointSite(memory, gpa, gva, await memory.readBytes(gpa, size));
  }

  /** False when the memory is not there or cannot be written. */
  async arm(): Promise<boolean> {
    this.armed = await this.#memory.write(this.gpa, Uint8Array.of(INT3));
    return this.armed;
  }

  /** Puts the original byte back. False when the guest had written something else over the int3. */
  async disarm(): Promise<boolean> {
    if (!this.armed) return true;
    const now = new Uint8Array(1);
    const ours = (await this.#memory.read(this.gpa, now)) && now[0] === INT3;
    if (ours && !(await this.#memory.write(this.gpa, Uint8Array.of(this.original)))) {
      throw new KvmiError('E_NOT_BACKED', `the int3 at 0x${this.gva.toString(16)} cannot be overwritten`, {
        data: { gva: this.gva },
      });
    }
    this.armed = false;
    return ours;
  }
}

function isString(code: Uint8Array): boolean {
  const rex = code[1]! >= 0x40 && code[1]! <= 0x4f;
  return STRING_OPCODES.has(code[rex ? 2 : 1]!);
}

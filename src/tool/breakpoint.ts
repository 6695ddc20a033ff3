import type { Awaitable } from '../awaitable.ts';
import type { Gpa, Gva } from '../machine/index.ts';
import type { GuestEvent } from './event.ts';

/**
 * Called with the vCPU in front of the instruction, on every hit. It may read and change the guest; registers that
 * are assigned in `event.registers` are set. When it is done the instruction is carried out, unless rip was changed.
 */
export type BreakpointHandler = (event: GuestEvent<'BREAKPOINT'>, breakpoint: Breakpoint) => Awaitable<void>;

/** A breakpoint that was set. */
export class Breakpoint {
  readonly gva: Gva;
  readonly gpa: Gpa;
  /** @internal */
  readonly handler: BreakpointHandler;
  hits = 0;
  readonly #remove: () => Promise<void>;

  constructor(gva: Gva, gpa: Gpa, handler: BreakpointHandler, remove: (self: Breakpoint) => Promise<void>) {
    this.gva = gva;
    this.gpa = gpa;
    this.handler = handler;
    let removed: Promise<void> | undefined;
    this.#remove = () => {
      removed ??= remove(this);
      return removed;
    };
  }

  /**
   * Takes it out. Resolves when the guest's code is as before, unless others are set at the same byte. It may be called
   * at any time, also by the handler.
   */
  remove(): Promise<void> {
    return this.#remove();
  }
}

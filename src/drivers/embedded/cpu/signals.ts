/*
 * What leaves the execution of an instruction early. They are thrown: constant objects without a stack trace, so
 * that a page trap costs a third of a microsecond and no memory access needs a check after it.
 */

/** The instruction raised the exception that is in Cpu.fault. */
export const FAULT = { signal: 'fault' } as const;
/** A trap fired: the stop is in Cpu.stop and nothing of the instruction has happened. */
export const STOP = { signal: 'stop' } as const;
/** A trap fired and its answer was applied, or is awaited: the instruction begins again. */
export const RESTART = { signal: 'restart' } as const;
/** The processor cannot go on (triple fault). */
export const SHUTDOWN = { signal: 'shutdown' } as const;

/** Why {@link Cpu.attention} is not zero, that is why the next instruction cannot just be executed. */
export const ATTENTION = {
  /** Somebody wants the vCPU outside the guest. */
  request: 1,
  /** An exception or an injection waits for delivery. */
  event: 2,
  /** The singlestep trap is armed. */
  step: 4,
  /** TF is set. */
  trapFlag: 8,
  /** The instruction after STI or a load of ss is not interrupted. */
  shadow: 16,
  /** An interrupt can be delivered. */
  interrupt: 32,
  halt: 64,
  /** The next instruction has permissions that the one after it does not have. */
  grant: 128,
  /** The vCPU left the guest for good. */
  dead: 256,
  /** The loop is to return: the machine was paused from within. */
  leave: 512,
} as const;

/** Traps of one vCPU that instructions test, as bits of {@link Cpu.armed}. */
export const ARMED = {
  breakpoint: 1,
  xsetbv: 2,
  descriptor: 4,
  hypercall: 8,
  cpuid: 16,
  cr0: 32,
  cr3: 64,
  cr4: 128,
} as const;

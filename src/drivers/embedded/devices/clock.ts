/** Nanoseconds of guest time that an instruction takes on a clock that counts instructions. */
const NANOSECONDS_PER_INSTRUCTION = 20;

/** Frequency of the guest's time stamp counter: one tick a nanosecond. */
export const TSC_HZ = 1_000_000_000;

/**
 * Guest time, in nanoseconds since the machine was made. It follows the host's clock while the machine runs, or
 * counts instructions, so that a run can be repeated exactly.
 */
export class Clock {
  readonly countsInstructions: boolean;
  #time = 0;
  /** Host time at which `#time` was right, or undefined while the clock stands still. */
  #since: number | undefined;
  #tscOffset = 0n;
  #tsc = 0n;

  constructor(countsInstructions: boolean) {
    this.countsInstructions = countsInstructions;
  }

  now(): number {
    if (this.countsInstructions || this.#since === undefined) return this.#time;
    return this.#time + (performance.now() - this.#since) * 1e6;
  }

  start(): void {
    this.#since ??= performance.now();
  }

  stop(): void {
    this.#time = this.now();
    this.#since = undefined;
  }

  /** Tells how many instructions ran; only a clock that counts them moves. */
  ran(instructions: number): void {
    if (this.countsInstructions) this.#time += instructions * NANOSECONDS_PER_INSTRUCTION;
  }

  /** Moves a clock that counts instructions to a later time, because the machine waits for it. */
  skipTo(time: number): void {
    if (this.countsInstructions && time > this.#time) this.#time = time;
  }

  /** Takes a reading of the time stamp counter and returns its low half. */
  tscLow(): number {
    this.#tsc = BigInt.asUintN(64, BigInt(Math.floor(this.now())) + this.#tscOffset);
    return Number(BigInt.asIntN(32, this.#tsc));
  }

  /** The high half of the reading that {@link tscLow} took. */
  tscHigh(): number {
    return Number(BigInt.asIntN(32, this.#tsc >> 32n));
  }

  setTsc(value: bigint): void {
    this.#tscOffset = value - BigInt(Math.floor(this.now()));
  }
}

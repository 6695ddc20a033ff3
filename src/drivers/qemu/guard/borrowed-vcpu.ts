/**
 * A vCPU that executes something for this process: its registers by the names of the gdbstub, in hexadecimal, in the
 * order in which they are to be written to give it back.
 */
export interface BorrowedVcpu {
  readonly vcpu: number;
  readonly registers: readonly (readonly [name: string, value: string])[];
  /** Where it is as long as it has others, in hexadecimal. Elsewhere somebody has let it run on, with those. */
  readonly places: readonly string[];
}

export function borrowedVcpu(
  vcpu: number,
  registers: readonly (readonly [name: string, value: bigint])[],
  places: readonly bigint[],
): BorrowedVcpu {
  return {
    vcpu,
    registers: registers.map(([name, value]) => [name, value.toString(16)]),
    places: places.map((rip) => rip.toString(16)),
  };
}

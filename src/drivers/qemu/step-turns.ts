import type { VcpuRun } from './stopped-vcpu.ts';

/** No instruction takes longer, but one that waits for an interrupt. */
const TURN_MS = 10;

/**
 * Of several vCPUs that are to execute one instruction one does at a time. When two have done so at once QEMU stops the VM
 * once or twice, as it happens, and a stop that others asked for in that moment could not be told from the second one.
 */
export class StepTurns {
  #last = -1;
  #timer: NodeJS.Timeout | undefined;

  /** Whose turn it is: one, and those that were found to wait for an interrupt, which only vCPUs that run can get. */
  next(steps: readonly VcpuRun[]): readonly VcpuRun[] {
    const ready = steps.filter(({ waits }) => !waits);
    const turn = ready.find(({ index }) => index > this.#last) ?? ready[0];
    if (turn === undefined) return steps;
    this.#last = turn.index;
    return steps.filter((vcpu) => vcpu.waits || vcpu === turn);
  }

  /** To be called when they run: `late` is called when they take too long. */
  begin(turn: readonly VcpuRun[], late: () => void): void {
    this.#timer = setTimeout(() => {
      for (const vcpu of turn) vcpu.waits = true;
      late();
    }, TURN_MS);
  }

  /** The VM has stopped. */
  end(): void {
    clearTimeout(this.#timer);
  }
}

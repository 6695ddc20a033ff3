import type { VcpuRun } from './stopped-vcpu.ts';

/** No instruction takes longer, but one that waits for an interrupt. */
const TURN_MS = 10;

/** Who runs when the VM is let run, and who of these executes one instruction. */
export interface Turn {
  readonly running: readonly VcpuRun[];
  readonly steps: readonly VcpuRun[];
}

/**
 * vCPUs that are to execute one instruction do so one at a time, and where that is the only one for now nobody else runs
 * meanwhile. When two vCPUs come to the end of a step, or to a breakpoint, at once QEMU stops the VM once or twice, as it
 * happens, and a stop that others asked for in that moment could not be told from the second one.
 */
export class StepTurns {
  #last = -1;
  #timer: NodeJS.Timeout | undefined;

  /** The next turn of the vCPUs that may run. Those that were found to wait for an interrupt get one only when they run. */
  next(vcpus: readonly VcpuRun[]): Turn {
    for (const vcpu of vcpus) if (!vcpu.stepping) vcpu.inSeries = false;
    const all = vcpus.filter(({ stepOver, stepping }) => stepOver || stepping);
    const ready = all.filter(({ waits }) => !waits);
    const one = ready.find(({ index }) => index > this.#last) ?? ready[0];
    if (one === undefined) return { running: vcpus, steps: all };
    this.#last = one.index;
    const alone = one.stepOver || !one.inSeries;
    one.inSeries = one.stepping;
    if (alone) return { running: [one], steps: [one] };
    const running = vcpus.filter((vcpu) => vcpu === one || !ready.includes(vcpu));
    return { running, steps: running.filter((vcpu) => all.includes(vcpu)) };
  }

  /** To be called when `turn` begins and others sit it out: `late` is called when it takes too long. */
  begin({ steps }: Turn, late: () => void): void {
    this.#timer = setTimeout(() => {
      for (const vcpu of steps) vcpu.waits = true;
      late();
    }, TURN_MS);
  }

  /** The VM has stopped. */
  end(): void {
    clearTimeout(this.#timer);
  }
}

import type { VcpuRun } from './stopped-vcpu.ts';

/** No instruction takes longer, but one that waits for an interrupt, or on a busy host. */
const TURN_MS = 10;
/** No step takes longer on any host. */
const LIMIT_MS = 1000;

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
  /** Whose turn it is, and when it began. */
  #one: { readonly vcpu: VcpuRun; readonly since: number } | undefined;

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

  /** To be called when `turn` begins. `late`: others sit it out, and are called when it takes too long. */
  begin({ steps }: Turn, late: (() => void) | undefined): void {
    const one = steps.find(({ waits }) => !waits);
    this.#one = one && { vcpu: one, since: performance.now() };
    if (one && late) this.#timer = setTimeout(late, TURN_MS);
  }

  /**
   * Before the VM is stopped, which resolves `stopped`: whether that comes by itself, as a vCPU is about to end its step. To stop it
   * just then would be two stops to QEMU, and one of others could not be told from the second. `halted` tells whether a
   * vCPU waits for an interrupt.
   */
  async endsBySelf(stopped: Promise<unknown>, halted: (vcpu: number) => Promise<boolean>): Promise<boolean> {
    const one = this.#one;
    if (one === undefined) return false;
    const { vcpu, since } = one;
    for (let patience = TURN_MS; ; patience += TURN_MS) {
      if (await within(stopped, since + patience - performance.now())) return true;
      if (patience < LIMIT_MS && !(await halted(vcpu.index))) continue;
      vcpu.waits = this.#one === one;
      return !vcpu.waits;
    }
  }

  /** The VM has stopped. */
  end(): void {
    clearTimeout(this.#timer);
    this.#one = undefined;
  }
}

/** Whether `work` is done within so many milliseconds. */
async function within(work: Promise<unknown>, ms: number): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<false>((resolve) => {
    timer = setTimeout(() => resolve(false), Math.max(0, ms));
  });
  const done = await Promise.race([work.then(() => true as const), late]);
  clearTimeout(timer);
  return done;
}

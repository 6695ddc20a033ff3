import { type Awaitable, then } from '../awaitable.ts';
import {
  type HardwareBreakpoints,
  type MachineHandler,
  MachineWrapper,
  type StopKind,
} from '../machine/index.ts';

/** A machine that measures for how long its vCPUs are held by stops, and is otherwise the one behind it. */
export class StopMeter extends MachineWrapper {
  readonly #held = new Map<StopKind, number>();

  /** How long stops of these kinds held vCPUs together, in milliseconds. */
  heldBy(...kinds: readonly StopKind[]): number {
    return kinds.reduce((sum, kind) => sum + (this.#held.get(kind) ?? 0), 0);
  }

  override get hardwareBreakpoints(): HardwareBreakpoints | undefined {
    const breakpoints = this.inner.hardwareBreakpoints;
    return (
      breakpoints && {
        count: breakpoints.count,
        set: (address, hit) =>
          breakpoints.set(address, (vcpu) => this.#measured('breakpoint', () => hit(vcpu))),
      }
    );
  }

  override attach(handler: MachineHandler): Awaitable<void> {
    const measuring: Required<MachineHandler> = {
      stop: (vcpu, stop) => this.#measured(stop.kind, () => handler.stop(vcpu, stop)),
      request: (vcpu) => handler.request(vcpu),
      vcpuCreated: (vcpu) => handler.vcpuCreated?.(vcpu),
      preUnhook: (reason) => handler.preUnhook?.(reason),
      closed: (error) => handler.closed(error),
    };
    return super.attach(measuring);
  }

  #measured<T>(kind: StopKind, stop: () => Awaitable<T>): Awaitable<T> {
    const since = performance.now();
    return then(stop(), (answer) => {
      this.#held.set(kind, (this.#held.get(kind) ?? 0) + performance.now() - since);
      return answer;
    });
  }
}

import { type Awaitable, then } from '../awaitable.ts';
import { type MachineHandler, type MachineProbes, MachineWrapper, type StopKind } from '../machine/index.ts';

/** What holds a vCPU. */
type Held = StopKind | 'probe';

/** A machine that measures for how long its vCPUs are held by stops and probes, and is otherwise the one behind it. */
export class StopMeter extends MachineWrapper {
  /** Called when the guest was reset. */
  onReset: () => void = () => {};
  readonly #held = new Map<Held, number>();

  /** How long those of these kinds held vCPUs together, in milliseconds. */
  heldBy(...kinds: readonly Held[]): number {
    return kinds.reduce((sum, kind) => sum + (this.#held.get(kind) ?? 0), 0);
  }

  override get probes(): MachineProbes | undefined {
    const { probes } = this.inner;
    return (
      probes && {
        kind: probes.kind,
        count: probes.count,
        set: (address, hit) => probes.set(address, (vcpu) => this.#measured('probe', () => hit(vcpu))),
      }
    );
  }

  override attach(handler: MachineHandler): Awaitable<void> {
    const measuring: Required<MachineHandler> = {
      stop: (vcpu, stop) => this.#measured(stop.kind, () => handler.stop(vcpu, stop)),
      request: (vcpu) => handler.request(vcpu),
      vcpuCreated: (vcpu) => handler.vcpuCreated?.(vcpu),
      preUnhook: (reason) => handler.preUnhook?.(reason),
      reset: () => {
        this.onReset();
        handler.reset?.();
      },
      closed: (error) => handler.closed(error),
    };
    return super.attach(measuring);
  }

  #measured<T>(kind: Held, stop: () => Awaitable<T>): Awaitable<T> {
    const since = performance.now();
    return then(stop(), (answer) => {
      this.#held.set(kind, (this.#held.get(kind) ?? 0) + performance.now() - since);
      return answer;
    });
  }
}

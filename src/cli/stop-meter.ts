import { type Awaitable, then } from '../awaitable.ts';
import type { Machine, MachineHandler, MachineProbes, StopKind, Trap, Vcpu } from '../machine/index.ts';

/** What holds a vCPU. */
type Held = StopKind | 'probe';

/** A machine that measures for how long its vCPUs are held by stops and probes, and is otherwise the one behind it. */
export class StopMeter implements Machine {
  readonly #machine: Machine;
  readonly #held = new Map<Held, number>();

  constructor(machine: Machine) {
    this.#machine = machine;
  }

  /** How long those of these kinds held vCPUs together, in milliseconds. */
  heldBy(...kinds: readonly Held[]): number {
    return kinds.reduce((sum, kind) => sum + (this.#held.get(kind) ?? 0), 0);
  }

  get name(): string {
    return this.#machine.name;
  }

  get uuid(): Uint8Array {
    return this.#machine.uuid;
  }

  get startTime(): number {
    return this.#machine.startTime;
  }

  get capabilities(): Machine['capabilities'] {
    return this.#machine.capabilities;
  }

  get memory(): Machine['memory'] {
    return this.#machine.memory;
  }

  get vcpus(): readonly Vcpu[] {
    return this.#machine.vcpus;
  }

  get probes(): MachineProbes | undefined {
    const inner = this.#machine.probes;
    return (
      inner && {
        kind: inner.kind,
        count: inner.count,
        set: (address, hit) => inner.set(address, (vcpu) => this.#measured('probe', () => hit(vcpu))),
      }
    );
  }

  attach(handler: MachineHandler): Awaitable<void> {
    return this.#machine.attach({
      stop: (vcpu, stop) => this.#measured(stop.kind, () => handler.stop(vcpu, stop)),
      request: (vcpu) => handler.request(vcpu),
      vcpuCreated: (vcpu) => handler.vcpuCreated?.(vcpu),
      preUnhook: (reason) => handler.preUnhook?.(reason),
      closed: (error) => handler.closed(error),
    });
  }

  #measured<T>(kind: Held, stop: () => Awaitable<T>): Awaitable<T> {
    const since = performance.now();
    return then(stop(), (answer) => {
      this.#held.set(kind, (this.#held.get(kind) ?? 0) + performance.now() - since);
      return answer;
    });
  }

  detach(): Awaitable<void> {
    return this.#machine.detach();
  }

  arm(trap: Trap): Awaitable<void> {
    return this.#machine.arm(trap);
  }

  disarm(trap: Trap): Awaitable<void> {
    return this.#machine.disarm(trap);
  }

  close(): Promise<void> {
    return this.#machine.close();
  }
}

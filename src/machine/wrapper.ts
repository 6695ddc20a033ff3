import type { Awaitable } from '../awaitable.ts';
import type { Capabilities } from './capabilities.ts';
import type { Machine, MachineHandler } from './machine.ts';
import type { PhysicalMemory } from './memory.ts';
import type { MachineProbes } from './probes.ts';
import type { Trap } from './stops.ts';
import type { Vcpu } from './vcpu.ts';
import type { Frames, Views } from './views.ts';

/** Every member of a machine, those that a driver may leave out as well: one that is not passed on does not compile. */
type Whole = { [Name in keyof Required<Machine>]: Machine[Name] };

/** A machine in front of another one: passes everything on; subclasses change what they are there for. */
export class MachineWrapper implements Whole {
  protected readonly inner: Machine;

  constructor(inner: Machine) {
    this.inner = inner;
  }

  get name(): string {
    return this.inner.name;
  }

  get uuid(): Uint8Array {
    return this.inner.uuid;
  }

  get startTime(): number {
    return this.inner.startTime;
  }

  get capabilities(): Capabilities {
    return this.inner.capabilities;
  }

  get memory(): PhysicalMemory {
    return this.inner.memory;
  }

  get vcpus(): readonly Vcpu[] {
    return this.inner.vcpus;
  }

  get vmcoreinfo(): string | undefined {
    return this.inner.vmcoreinfo;
  }

  get views(): Views | undefined {
    return this.inner.views;
  }

  get probes(): MachineProbes | undefined {
    return this.inner.probes;
  }

  get frames(): Frames | undefined {
    return this.inner.frames;
  }

  attach(handler: MachineHandler): Awaitable<void> {
    return this.inner.attach(handler);
  }

  detach(): Awaitable<void> {
    return this.inner.detach();
  }

  arm(trap: Trap): Awaitable<void> {
    return this.inner.arm(trap);
  }

  disarm(trap: Trap): Awaitable<void> {
    return this.inner.disarm(trap);
  }

  get kill(): Machine['kill'] {
    return this.inner.kill?.bind(this.inner);
  }

  close(): Promise<void> {
    return this.inner.close();
  }
}

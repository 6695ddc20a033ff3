import { setImmediate as turn } from 'node:timers/promises';
import type { Awaitable } from '../../src/awaitable.ts';
import type {
  Frames,
  Machine,
  MachineHandler,
  PhysicalMemory,
  Trap,
  Vcpu,
  Views,
} from '../../src/machine/index.ts';

/** Does `work` in a later turn: who looks for its effect without waiting finds none. */
async function later<T>(work: () => Awaitable<T>): Promise<T> {
  await turn();
  return work();
}

class LateMemory implements PhysicalMemory {
  readonly #memory: PhysicalMemory;

  constructor(memory: PhysicalMemory) {
    this.#memory = memory;
  }

  get regions() {
    return this.#memory.regions;
  }

  read(gpa: number, into: Uint8Array) {
    return later(() => this.#memory.read(gpa, into));
  }

  write(gpa: number, from: Uint8Array) {
    const bytes = from.slice();
    return later(() => this.#memory.write(gpa, bytes));
  }
}

class LateVcpu implements Vcpu {
  readonly vcpu: Vcpu;

  constructor(vcpu: Vcpu) {
    this.vcpu = vcpu;
  }

  get index() {
    return this.vcpu.index;
  }

  get started() {
    return this.vcpu.started;
  }

  get tscHz() {
    return this.vcpu.tscHz;
  }

  request() {
    return later(() => this.vcpu.request());
  }

  readState(into: Uint8Array) {
    return later(() => this.vcpu.readState(into));
  }

  writeRegisters(regs: Uint8Array) {
    const bytes = regs.slice();
    return later(() => this.vcpu.writeRegisters(bytes));
  }

  readMsr(index: number) {
    return later(() => this.vcpu.readMsr(index));
  }

  cpuid(leaf: number, subleaf: number) {
    return later(() => this.vcpu.cpuid(leaf, subleaf));
  }

  xcr0() {
    return later(() => this.vcpu.xcr0());
  }

  readXsave(into: Uint8Array) {
    return later(() => this.vcpu.readXsave(into));
  }

  writeXsave(area: Uint8Array) {
    const bytes = area.slice();
    return later(() => this.vcpu.writeXsave(bytes));
  }

  mtrrType(gpa: number) {
    return later(() => this.vcpu.mtrrType(gpa));
  }

  inject(exception: Parameters<Vcpu['inject']>[0]) {
    return later(() => this.vcpu.inject(exception));
  }
}

/**
 * A machine of this process as one behind a socket would be: what may be a promise is one, and nothing is done before a
 * later turn. Memory has no view.
 */
export class LateMachine implements Machine {
  readonly memory: PhysicalMemory;
  readonly views?: Views;
  readonly frames?: Frames;
  readonly #machine: Machine;
  readonly #vcpus: LateVcpu[] = [];

  constructor(machine: Machine) {
    this.#machine = machine;
    this.memory = new LateMemory(machine.memory);
    if (machine.views) this.views = this.#lateViews(machine.views);
    if (machine.frames) this.frames = lateFrames(machine.frames);
  }

  get name() {
    return this.#machine.name;
  }

  get uuid() {
    return this.#machine.uuid;
  }

  get startTime() {
    return this.#machine.startTime;
  }

  get capabilities() {
    return this.#machine.capabilities;
  }

  get vcpus(): readonly LateVcpu[] {
    for (const vcpu of this.#machine.vcpus.slice(this.#vcpus.length)) this.#vcpus.push(new LateVcpu(vcpu));
    return this.#vcpus;
  }

  attach(handler: MachineHandler) {
    return later(() => this.#machine.attach(this.#lateHandler(handler)));
  }

  detach() {
    return later(() => this.#machine.detach());
  }

  arm(trap: Trap) {
    return later(() => this.#machine.arm(innerTrap(trap)));
  }

  disarm(trap: Trap) {
    return later(() => this.#machine.disarm(innerTrap(trap)));
  }

  kill() {
    return later(() => this.#machine.kill?.());
  }

  close() {
    return later(() => this.#machine.close());
  }

  #lateHandler(handler: MachineHandler): MachineHandler {
    const late = (vcpu: Vcpu) => this.vcpus[vcpu.index]!;
    return {
      stop: (vcpu, stop) => handler.stop(late(vcpu), stop),
      request: (vcpu) => handler.request(late(vcpu)),
      vcpuCreated: (vcpu) => handler.vcpuCreated?.(late(vcpu)),
      preUnhook: (reason) => handler.preUnhook?.(reason),
      closed: (error) => handler.closed(error),
    };
  }

  #lateViews(views: Views): Views {
    return {
      limit: views.limit,
      exists: (view) => views.exists(view),
      create: () => later(() => views.create()),
      destroy: (view) => later(() => views.destroy(view)),
      current: (vcpu) => views.current(inner(vcpu)),
      switch: (vcpu, view) => later(() => views.switch(inner(vcpu), view)),
      setVisible: (vcpu, view, visible) => later(() => views.setVisible(inner(vcpu), view, visible)),
      changeGfn: (view, from, to) => later(() => views.changeGfn(view, from, to)),
      ...(views.setWriteBitmap && {
        setWriteBitmap: (view: number, gfn: number, bitmap: number) =>
          later(() => views.setWriteBitmap!(view, gfn, bitmap)),
      }),
    };
  }
}

function lateFrames(frames: Frames): Frames {
  return {
    allocate: (gfn) => later(() => frames.allocate(gfn)),
    free: (gfn) => later(() => frames.free(gfn)),
  };
}

function inner(vcpu: Vcpu): Vcpu {
  return (vcpu as LateVcpu).vcpu;
}

function innerTrap(trap: Trap): Trap {
  return trap.kind === 'page' ? trap : { ...trap, vcpu: inner(trap.vcpu) };
}

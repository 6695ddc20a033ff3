import { KvmiError } from '../../src/error.ts';
import type { ErrorCode } from '../../src/error-codes.ts';
import {
  bytesBackend,
  CAPABILITY_NAMES,
  type Capabilities,
  type Machine,
  type MachineHandler,
  RegionMemory,
  type Trap,
  type Vcpu,
} from '../../src/machine/index.ts';

/** A machine that can do everything, says what it was told to arm and disarm, and fails as a test wants. */
export class ScriptedMachine implements Machine {
  readonly name = 'scripted';
  readonly uuid = new Uint8Array(16);
  readonly startTime = 0;
  readonly capabilities = Object.fromEntries(CAPABILITY_NAMES.map((name) => [name, true])) as Capabilities;
  readonly memory: RegionMemory;
  readonly vcpus: readonly Vcpu[];
  readonly armed: Trap[] = [];
  readonly disarmed: Trap[] = [];
  handler: MachineHandler | undefined;
  /** Each is awaited when its name comes up; what it throws is thrown then, later. */
  readonly script: {
    attach?(): Promise<void>;
    arm?(trap: Trap): Promise<void>;
    disarm?(trap: Trap): Promise<void>;
  } = {};

  constructor(options: { memory?: number; vcpus?: number } = {}) {
    const size = options.memory ?? 0x10000;
    this.memory = new RegionMemory([
      { gpa: 0, size, readonly: false, backend: bytesBackend(new Uint8Array(size)) },
    ]);
    this.vcpus = Array.from({ length: options.vcpus ?? 1 }, (_, index) => this.#vcpu(index));
  }

  async attach(handler: MachineHandler): Promise<void> {
    await this.script.attach?.();
    this.handler = handler;
  }

  detach(): void {
    this.handler = undefined;
  }

  async arm(trap: Trap): Promise<void> {
    await this.script.arm?.(trap);
    this.armed.push(trap);
  }

  async disarm(trap: Trap): Promise<void> {
    await this.script.disarm?.(trap);
    this.disarmed.push(trap);
  }

  async close(): Promise<void> {}

  /** It is never in the guest: what it is asked for is carried out in the next turn. */
  #vcpu(index: number): Vcpu {
    const vcpu: Vcpu = {
      index,
      started: true,
      tscHz: 0,
      request: () => queueMicrotask(() => void this.handler?.request(vcpu)),
      readState() {},
      writeRegisters() {},
      readMsr: () => 0n,
      cpuid: () => undefined,
      xcr0: () => 1n,
      readXsave() {},
      writeXsave: () => true,
      mtrrType: () => 6,
      inject() {},
    };
    return vcpu;
  }
}

/** A failure that comes after the call has returned. */
export async function failsLater(code: ErrorCode): Promise<never> {
  await Promise.resolve();
  throw new KvmiError(code, 'as the test wants');
}

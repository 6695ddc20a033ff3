import { createHash } from 'node:crypto';
import { basename } from 'node:path';
import { getU64 } from '../../abi/bytes.ts';
import { MSRS_OFFSET, STATE_SIZE } from '../../abi/state.ts';
import { EVENT_MSRS } from '../../abi/x86.ts';
import { type Awaitable, then } from '../../awaitable.ts';
import {
  attachedAlready,
  type Capabilities,
  CapabilityError,
  type CapabilityName,
  type CpuidLeaf,
  capabilitiesOf,
  type Machine,
  type MachineHandler,
  type PhysicalMemory,
  RegionMemory,
  requireTrap,
  type Trap,
  type Vcpu,
} from '../../machine/index.ts';
import type { DumpContents, DumpedState, DumpFormat } from './contents.ts';
import type { FileSource } from './file.ts';

const STOPPED = 'a memory dump is a machine that has stopped for good';
const READ_ONLY = 'a memory dump is read only';
const NOT_IN_DUMP = 'memory dumps do not hold it';

const REASONS: Readonly<Partial<Record<CapabilityName, string>>> = {
  'memory-write': READ_ONLY,
  'set-registers': READ_ONLY,
  'set-xsave': READ_ONLY,
  msrs: NOT_IN_DUMP,
  cpuid: NOT_IN_DUMP,
  xcr: NOT_IN_DUMP,
  xsave: NOT_IN_DUMP,
  mtrr: NOT_IN_DUMP,
};

/** A memory dump as a machine: its memory and registers can be read, and nothing ever happens in it. */
export class SnapshotMachine implements Machine {
  readonly name: string;
  readonly uuid: Uint8Array;
  readonly startTime = 0;
  readonly capabilities: Capabilities;
  readonly memory: PhysicalMemory;
  readonly vcpus: readonly SnapshotVcpu[];
  readonly format: DumpFormat;
  /** What the kernel says about itself, when the dump carries it apart from memory. */
  readonly vmcoreinfo: string | undefined;
  /** Bytes of memory that the file should hold and does not, because it is cut off: they cannot be read. */
  readonly missing: number;
  readonly #file: FileSource;
  #handler: MachineHandler | undefined;

  /** @internal */
  constructor(file: FileSource, contents: DumpContents) {
    this.name = basename(file.path);
    this.uuid = createHash('sha256').update(file.path).digest().subarray(0, 16);
    this.memory = readOnly(new RegionMemory(contents.regions));
    this.format = contents.format;
    this.vmcoreinfo = contents.vmcoreinfo;
    this.missing = contents.missing;
    this.#file = file;
    this.vcpus = contents.states.map((state, index) => new SnapshotVcpu(index, state, () => this.#handler));
    const withRegisters = contents.states.length > 0 ? true : `the ${contents.format} dump has no registers`;
    const given: Partial<Capabilities> = { registers: withRegisters, pause: withRegisters };
    this.capabilities = capabilitiesOf((name) => given[name] ?? REASONS[name] ?? STOPPED);
  }

  attach(handler: MachineHandler): void {
    if (this.#handler !== undefined) throw attachedAlready(this.name);
    this.#handler = handler;
  }

  detach(): void {
    this.#handler = undefined;
  }

  arm(trap: Trap): void {
    requireTrap(this.capabilities, trap);
  }

  disarm(): void {}

  async close(): Promise<void> {
    const handler = this.#handler;
    this.#handler = undefined;
    handler?.closed();
    this.#file.close();
  }
}

function readOnly(memory: RegionMemory): PhysicalMemory {
  return {
    regions: memory.regions.map(({ gpa, size }) => ({ gpa, size, readonly: false })),
    read: (gpa, into) => memory.read(gpa, into),
    write: () => false,
  };
}

/** In the order in which the state block has them. */
const STATE_MSRS: readonly number[] = Object.values(EVENT_MSRS);

/** A vCPU as it was when the dump was made. */
export class SnapshotVcpu implements Vcpu {
  readonly index: number;
  readonly started = true;
  readonly tscHz = 0;
  readonly #state: DumpedState;
  readonly #handler: () => MachineHandler | undefined;

  constructor(index: number, state: DumpedState, handler: () => MachineHandler | undefined) {
    this.index = index;
    this.#state = state;
    this.#handler = handler;
  }

  /** It is always outside the guest. */
  request(): Awaitable<void> {
    const handler = this.#handler();
    return handler && then(handler.request(this), () => {});
  }

  readState(into: Uint8Array): void {
    into.set(this.#state.bytes.subarray(0, STATE_SIZE));
  }

  writeRegisters(): never {
    throw new CapabilityError('set-registers', READ_ONLY);
  }

  /** Those of the state block. */
  readMsr(index: number): bigint | undefined {
    const place = STATE_MSRS.indexOf(index);
    if (place < 0) throw new CapabilityError('msrs', NOT_IN_DUMP);
    return this.#state.msrs.has(index) ? getU64(this.#state.bytes, MSRS_OFFSET + 8 * place) : undefined;
  }

  cpuid(): Awaitable<CpuidLeaf | undefined> {
    throw new CapabilityError('cpuid', NOT_IN_DUMP);
  }

  xcr0(): never {
    throw new CapabilityError('xcr', NOT_IN_DUMP);
  }

  readXsave(): never {
    throw new CapabilityError('xsave', NOT_IN_DUMP);
  }

  writeXsave(): never {
    throw new CapabilityError('set-xsave', READ_ONLY);
  }

  mtrrType(): never {
    throw new CapabilityError('mtrr', NOT_IN_DUMP);
  }

  inject(): never {
    throw new CapabilityError('inject', STOPPED);
  }
}

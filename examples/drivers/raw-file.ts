import { createHash } from 'node:crypto';
import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { basename } from 'node:path';
import { KvmiError } from '../../src/index.ts';
import {
  capabilitiesOf,
  type Machine,
  type MachineHandler,
  PAGE_SIZE,
  RegionMemory,
  requireCapability,
  type Trap,
} from '../../src/machine/index.ts';

const NO_VCPUS = 'a file of memory has no vCPUs';

/** A file with a guest's memory from guest-physical address 0 on, as a machine: it can be read, and nothing happens in it. */
export class RawFileMachine implements Machine {
  readonly name: string;
  readonly uuid: Uint8Array;
  readonly startTime = 0;
  readonly capabilities = capabilitiesOf((name) =>
    name === 'memory-write' ? 'the file is read only' : NO_VCPUS,
  );
  readonly memory: RegionMemory;
  readonly vcpus = [];
  readonly #file: number;
  #handler: MachineHandler | undefined;

  constructor(path: string) {
    this.name = basename(path);
    this.uuid = createHash('sha256').update(path).digest().subarray(0, 16);
    this.#file = openSync(path, 'r');
    const size = fstatSync(this.#file).size;
    const read = (offset: number, into: Uint8Array) =>
      readSync(this.#file, into, 0, into.length, offset) === into.length;
    this.memory = new RegionMemory([
      { gpa: 0, size: size - (size % PAGE_SIZE), readonly: false, backend: { read, write: () => false } },
    ]);
  }

  attach(handler: MachineHandler): void {
    if (this.#handler) throw new KvmiError('E_BUSY', `${this.name} is attached already`);
    this.#handler = handler;
  }

  detach(): void {
    this.#handler = undefined;
  }

  arm({ kind }: Trap): void {
    requireCapability(
      this.capabilities,
      kind === 'page' ? 'page-read' : kind === 'cpuid' ? 'cpuid-event' : kind,
    );
  }

  disarm(): void {}

  async close(): Promise<void> {
    this.#handler?.closed();
    this.#handler = undefined;
    closeSync(this.#file);
  }
}

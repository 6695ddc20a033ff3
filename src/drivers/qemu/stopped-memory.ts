import type { Awaitable } from '../../awaitable.ts';
import { KvmiError } from '../../error.ts';
import type { MemoryRegion, PhysicalMemory } from '../../machine/memory.ts';
import type { Paging } from '../../machine/paging.ts';
import { readVirtual, writeVirtual } from '../../machine/virtual-memory.ts';
import type { GdbClient } from './gdb.ts';

/** Guest memory for those who hold the gdbstub: writes go through it, as {@link GdbClient.writePhysical} says. */
export class StoppedMemory implements PhysicalMemory {
  readonly #memory: PhysicalMemory;
  readonly #gdb: GdbClient;

  constructor(memory: PhysicalMemory, gdb: GdbClient) {
    this.#memory = memory;
    this.#gdb = gdb;
  }

  get regions(): readonly MemoryRegion[] {
    return this.#memory.regions;
  }

  read(gpa: number, into: Uint8Array): Awaitable<boolean> {
    return this.#memory.read(gpa, into);
  }

  write(gpa: number, from: Uint8Array): Awaitable<boolean> {
    return this.#gdb.writePhysical(gpa, from);
  }
}

/** Bytes at a guest-virtual address; E_GUEST_MEMORY, naming `what`, when they are not mapped. */
export async function readBytes(
  memory: PhysicalMemory,
  paging: Paging,
  gva: bigint,
  size: number,
  what: string,
): Promise<Buffer> {
  const bytes = Buffer.alloc(size);
  if (await readVirtual(memory, paging, gva, bytes)) return bytes;
  throw new KvmiError('E_GUEST_MEMORY', `${what} at 0x${gva.toString(16)} is not in guest memory`);
}

/** The reverse of {@link readBytes}. */
export async function writeBytes(
  memory: PhysicalMemory,
  paging: Paging,
  gva: bigint,
  bytes: Uint8Array,
  what: string,
): Promise<void> {
  if (await writeVirtual(memory, paging, gva, bytes)) return;
  throw new KvmiError('E_GUEST_MEMORY', `${what} at 0x${gva.toString(16)} cannot be written`);
}

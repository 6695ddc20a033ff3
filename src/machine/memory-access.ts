import { type Awaitable, then } from '../awaitable.ts';
import { KvmiError } from '../error.ts';
import { type Gfn, type Gpa, PAGE_SIZE } from './address.ts';
import type { MemoryRegion, PhysicalMemory } from './memory.ts';

/**
 * The first frame number after the highest region that is not read-only, 0 when there is none: what
 * KVMI_VM_GET_MAX_GFN answers.
 */
export function memoryEnd(regions: readonly MemoryRegion[]): Gfn {
  let end = 0;
  for (const region of regions) if (!region.readonly) end = Math.max(end, region.gpa + region.size);
  return end / PAGE_SIZE;
}

/** The first byte from `gpa` on that no region holds; `gpa + size` when all are held. */
function firstHole(regions: readonly MemoryRegion[], gpa: Gpa, size: number): Gpa {
  let at = gpa;
  for (const region of regions) if (region.gpa <= at) at = Math.max(at, region.gpa + region.size);
  return Math.min(at, gpa + size);
}

/**
 * Reads `size` bytes at `gpa` into a new array. Throws a KvmiError with code E_NOT_BACKED that names the address
 * when there is no memory. `size` must not come from the guest unchecked.
 */
export function readExactly(memory: PhysicalMemory, gpa: Gpa, size: number): Awaitable<Uint8Array> {
  const into = new Uint8Array(size);
  return then(memory.read(gpa, into), (backed) => {
    if (backed) return into;
    const hole = firstHole(memory.regions, gpa, size);
    const why =
      hole < gpa + size
        ? `no memory at 0x${hole.toString(16)}`
        : 'the memory there could not be read just now';
    throw new KvmiError('E_NOT_BACKED', `${size} bytes at guest-physical 0x${gpa.toString(16)}: ${why}`, {
      hint: 'The address lies in a hole or in a device. Compare it with the regions of the machine.',
      data: { gpa, size, hole },
    });
  });
}

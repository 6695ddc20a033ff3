import type { PhysicalMemory } from '../../src/machine/index.ts';

/** The same memory, answering every read and write in a later microtask. */
export function later(memory: PhysicalMemory): PhysicalMemory {
  return {
    get regions() {
      return memory.regions;
    },
    async read(gpa, into) {
      await Promise.resolve();
      return memory.read(gpa, into);
    },
    async write(gpa, from) {
      await Promise.resolve();
      return memory.write(gpa, from);
    },
  };
}

import { setImmediate } from 'node:timers/promises';
import type { Gpa, PhysicalMemory } from '../machine/index.ts';

/** How long a search may keep this process from noticing signals and time-outs. */
const SLICE_MS = 50;

/**
 * Memory that answers at once keeps a long search from ever giving way. This one does so every now and then, so that
 * Ctrl-C and `--timeout` work, and fails when `signal` says that the work is to end.
 */
export function responsiveMemory(memory: PhysicalMemory, signal: AbortSignal): PhysicalMemory {
  let sliceEnd = performance.now() + SLICE_MS;
  const giveWay = async (gpa: Gpa, into: Uint8Array): Promise<boolean> => {
    await setImmediate();
    signal.throwIfAborted();
    sliceEnd = performance.now() + SLICE_MS;
    return memory.read(gpa, into);
  };
  return {
    get regions() {
      return memory.regions;
    },
    read: (gpa, into) => (performance.now() < sliceEnd ? memory.read(gpa, into) : giveWay(gpa, into)),
    write: (gpa, from) => memory.write(gpa, from),
    ...(memory.nextData && { nextData: (gpa: Gpa) => memory.nextData!(gpa) }),
  };
}

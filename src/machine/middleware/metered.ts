import { type Awaitable, attempt, then } from '../../awaitable.ts';
import type { PhysicalMemory } from '../memory.ts';

export interface AccessMetrics {
  readonly count: number;
  /** As asked for, also when the access failed. */
  readonly bytes: number;
  /** Answered false, threw or rejected. */
  readonly failed: number;
  /** The sum of all durations; accesses that overlap each count in full. */
  readonly milliseconds: number;
}

export interface MemoryMetrics {
  readonly reads: AccessMetrics;
  readonly writes: AccessMetrics;
  /** Views given out. What is read through one is not seen. */
  readonly views: number;
}

export interface MeteredMemory extends PhysicalMemory {
  /** The counts up to now. */
  snapshot(): MemoryMetrics;
}

type Meter = { -readonly [K in keyof AccessMetrics]: AccessMetrics[K] };

function measured(meter: Meter, bytes: number, access: () => Awaitable<boolean>): Awaitable<boolean> {
  meter.count++;
  meter.bytes += bytes;
  const start = performance.now();
  const finish = (done: boolean): boolean => {
    meter.milliseconds += performance.now() - start;
    if (!done) meter.failed++;
    return done;
  };
  const done = attempt(access, (error) => {
    finish(false);
    throw error;
  });
  return then(done, finish);
}

/** `memory`, counting and timing what goes through. */
export function metered(memory: PhysicalMemory): MeteredMemory {
  const reads: Meter = { count: 0, bytes: 0, failed: 0, milliseconds: 0 };
  const writes: Meter = { ...reads };
  let views = 0;
  return {
    get regions() {
      return memory.regions;
    },
    read: (gpa, into) => measured(reads, into.length, () => memory.read(gpa, into)),
    write: (gpa, from) => measured(writes, from.length, () => memory.write(gpa, from)),
    view(gpa, size) {
      const view = memory.view?.(gpa, size);
      if (view !== undefined) views++;
      return view;
    },
    snapshot: () => ({ reads: { ...reads }, writes: { ...writes }, views }),
  };
}

import { readdirSync } from 'node:fs';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

setFlagsFromString('--expose-gc');
const gc = runInNewContext('gc') as () => void;

/** What this process holds on to. */
export interface Resources {
  readonly descriptors: number;
  readonly threads: number;
  /** Bytes that are alive: objects and what they keep outside the heap. */
  readonly heap: number;
}

/** Counts after a garbage collection. */
export function resources(): Resources {
  gc();
  const { heapUsed, arrayBuffers } = process.memoryUsage();
  return {
    descriptors: readdirSync('/proc/self/fd').length,
    threads: readdirSync('/proc/self/task').length,
    heap: heapUsed + arrayBuffers,
  };
}

import { type Awaitable, then } from '../../awaitable.ts';
import type { Gpa } from '../address.ts';
import type { PhysicalMemory } from '../memory.ts';

/** What goes wrong, and when. */
export interface FaultPlan {
  /** The reads that fail, by their number; the first one is 1. */
  readonly failReads?: readonly number[];
  /** The writes that fail, likewise. Nothing is written. */
  readonly failWrites?: readonly number[];
  /** What an access that fails throws (or rejects with, when delayed); without it the access answers false. */
  readonly error?: Error;
  /** Awaited before each access. */
  readonly delay?: () => PromiseLike<unknown>;
  /** Bytes that reads get changed: those from `gpa` on are combined with `mask` by exclusive or. */
  readonly corrupt?: { readonly gpa: Gpa; readonly size: number; readonly mask: number };
}

/** `memory` with faults, for tests. It has no view, as that would go round them. */
export function faulty(memory: PhysicalMemory, plan: FaultPlan): PhysicalMemory {
  const { corrupt } = plan;
  let reads = 0;
  let writes = 0;

  const access = (fails: boolean, work: () => Awaitable<boolean>): Awaitable<boolean> =>
    then(plan.delay?.(), () => {
      if (!fails) return work();
      if (plan.error !== undefined) throw plan.error;
      return false;
    });

  return {
    get regions() {
      return memory.regions;
    },
    read(gpa, into) {
      const fails = plan.failReads?.includes(++reads) === true;
      return then(
        access(fails, () => memory.read(gpa, into)),
        (done) => {
          if (corrupt !== undefined) {
            const end = Math.min(into.length, corrupt.gpa + corrupt.size - gpa);
            for (let i = Math.max(0, corrupt.gpa - gpa); i < end; i++) into[i]! ^= corrupt.mask;
          }
          return done;
        },
      );
    },
    write(gpa, from) {
      const fails = plan.failWrites?.includes(++writes) === true;
      return access(fails, () => memory.write(gpa, from));
    },
  };
}

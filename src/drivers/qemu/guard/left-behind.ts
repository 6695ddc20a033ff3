import { messageOf } from '../../../error.ts';
import type { QmpTransport } from '../qmp.ts';
import { journalPath, journals, keeperOf, readJournal } from './journal.ts';
import { Repair } from './repair.ts';
import type { VmIdentity } from './vm-identity.ts';

const ATTEMPTS = 3;

/** What was found in a VM of a kvmi that was killed, and what became of it. */
export type LeftBehind =
  | { readonly kind: 'nothing' }
  /** It is as it was; `patches` int3 were in its memory. */
  | { readonly kind: 'repaired'; readonly patches: number }
  /** That kvmi, or its guard, lives: it is its business. */
  | { readonly kind: 'in-hands'; readonly pid: number; readonly host: boolean }
  | { readonly kind: 'failed'; readonly reason: string };

/** Undoes what a host side has left in a VM whose guard was killed, too. */
export async function repairLeftBehind(vm: VmIdentity, monitor: QmpTransport): Promise<LeftBehind> {
  const path = pathOf(vm);
  const state = path === undefined ? undefined : readJournal(path);
  if (path === undefined || !state) return { kind: 'nothing' };
  const keeper = keeperOf(state);
  if (keeper) return { kind: 'in-hands', pid: keeper.pid, host: keeper === state.host };
  let reason = 'it does not stay as it is to be';
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    try {
      await monitor.claim();
      const outcome = await new Repair(path, state).attempt(monitor);
      if (outcome !== 'again')
        return {
          kind: 'repaired',
          patches: state.patches.filter(([, original]) => original !== null).length,
        };
    } catch (error) {
      reason = messageOf(error);
    } finally {
      monitor.release();
    }
  }
  return { kind: 'failed', reason };
}

/** The processes of QEMUs in which something was left that nobody is about to undo. */
export function damagedProcesses(): ReadonlySet<number> {
  const left = [...journals().values()].filter((state) => !keeperOf(state));
  return new Set(left.flatMap(({ vm }) => vm.pid ?? []));
}

function pathOf(vm: VmIdentity): string | undefined {
  try {
    return journalPath(vm);
  } catch {
    return undefined;
  }
}

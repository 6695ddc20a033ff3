import { rmSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { leaveControlGroup } from '../../../system/control-group.ts';
import { whenReleased } from '../../../system/guard-process.ts';
import { identityOf, lives, type ProcessIdentity } from '../../../system/proc.ts';
import { sweepOffers } from '../sharing/sweep.ts';
import { Workspace } from '../workspace.ts';
import { type JournalState, readJournal } from './journal.ts';
import { Repair } from './repair.ts';

/*
 * node guard-main.js HOST JOURNAL WORKSPACE
 *
 * The guard of one machine. When the host side has ended, or says that it has, what the journal still names is undone,
 * however long it takes until that can be done.
 */

/** The first pause between two tries; QEMU notices within milliseconds that its client is gone. */
const PAUSE_MS = 20;
const LONGEST_PAUSE_MS = 2000;
/** For a QEMU whose end cannot be seen from here. */
const BLIND_PATIENCE_MS = 600_000;

/** A process that is being killed is gone after it, whatever it has to give back. */
const ENDING_MS = 10_000;

const [host, path, workspace] = process.argv.slice(2) as [string, string, string];
const hostIdentity = identityOf(Number(host));

process.title = 'kvmi-guard';
const goBack = leaveControlGroup();
whenReleased(async (released) => {
  const state = readJournal(path);
  if (state?.guard.pid === process.pid || state?.workspace === workspace) await undo(state);
  new Workspace(undefined, workspace).remove();
  // A host side that was killed with nothing armed has left its offer all the same, which may outlast our pipe a little.
  if (!released && hostIdentity) await ended(hostIdentity);
  await sweepOffers().catch(() => {});
  goBack?.();
  process.exit();
});

async function ended(process: ProcessIdentity): Promise<void> {
  for (const deadline = Date.now() + ENDING_MS; lives(process) && Date.now() < deadline; )
    await sleep(PAUSE_MS);
}

async function undo(first: JournalState): Promise<void> {
  const repair = new Repair(path, first);
  const deadline = first.vm.pid === null ? Date.now() + BLIND_PATIENCE_MS : Number.POSITIVE_INFINITY;
  for (let pause = PAUSE_MS; ; pause = Math.min(pause * 1.5, LONGEST_PAUSE_MS)) {
    try {
      if ((await repair.attempt()) !== 'again') return;
    } catch {
      // It is tried again: the reason may go.
    }
    if (Date.now() > deadline) return rmSync(path, { force: true });
    await sleep(pause);
  }
}

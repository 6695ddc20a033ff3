import { GuardProcess } from '../../../system/guard-process.ts';
import { identityOf, type ProcessIdentity } from '../../../system/proc.ts';
import { Journal, type JournalState, journalPath } from './journal.ts';

const SCRIPT = new URL('./guard-main.js', import.meta.url);

/** Somebody ends processes as they start: it is tried again. */
const ATTEMPTS = 3;

/**
 * Undoes what this process did to a VM, should it die without doing so itself: a process of its own, which acts on the
 * journal when this one has ended. While there is a journal there is a guard, whoever ends guards.
 */
export class Guard {
  #process: Promise<GuardProcess> | undefined;
  #journal: Journal | undefined;

  /** What is to be undone; undefined: nothing. */
  get journal(): Journal | undefined {
    return this.#journal;
  }

  /**
   * Returns when a guard is ready and the journal written: from then on what it names may be done.
   *
   * @throws KvmiError with code E_GUARD when there is no guard, or no place for a journal; E_BUSY, E_REPAIR when what
   * somebody else did is to be undone first.
   */
  async begin(
    state: Omit<JournalState, 'host' | 'guard' | 'patches' | 'handlers' | 'borrowed' | 'nodes'>,
  ): Promise<void> {
    // What could not be undone before is undone together with what comes.
    if (this.#journal) return this.#journal.update(state);
    const guard = await this.#ready(journalPath(state.vm), state.workspace);
    const nothing = { patches: [], handlers: [], borrowed: null, nodes: [] };
    this.#journal = new Journal({ ...state, host: identify(process.pid), guard, ...nothing });
  }

  /** Nothing is left to undo. */
  done(): void {
    this.#journal?.remove();
    this.#journal = undefined;
  }

  /** Ends the guard. What is still in the journal is its business from now on. */
  async end(): Promise<void> {
    const ending = await this.#process?.catch(() => undefined);
    this.#process = undefined;
    if (ending) this.#journal?.update({ host: identify(ending.pid) });
    ending?.release();
  }

  async #ready(journal: string, workspace: string): Promise<ProcessIdentity> {
    this.#process ??= this.#start(journal, workspace);
    try {
      return identify((await this.#process).pid);
    } catch (error) {
      this.#process = undefined;
      throw error;
    }
  }

  async #start(journal: string, workspace: string): Promise<GuardProcess> {
    for (let attempt = 1; ; attempt++) {
      try {
        const started = await GuardProcess.start(SCRIPT, [journal, workspace]);
        started.onEnd(() => this.#replace(started, journal, workspace));
        return started;
      } catch (error) {
        if (attempt === ATTEMPTS) throw error;
      }
    }
  }

  /** A guard was killed. */
  async #replace(ended: GuardProcess, journal: string, workspace: string): Promise<void> {
    if (!this.#process || (await this.#process.catch(() => undefined)) !== ended) return;
    this.#process = undefined;
    if (!this.#journal) return;
    // Without one the journal is still there for the next kvmi.
    const guard = await this.#ready(journal, workspace).catch(() => undefined);
    if (guard) this.#journal?.update({ guard });
  }
}

function identify(pid: number): ProcessIdentity {
  const found = identityOf(pid);
  if (!found) throw new Error(`process ${pid} has ended`);
  return found;
}

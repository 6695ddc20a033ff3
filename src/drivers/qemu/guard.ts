import type { ChildProcess } from 'node:child_process';
import { spawnDetached } from '../../system/guard-process.ts';
import type { QmpAddress } from './open-qmp.ts';
import type { StubPlan } from './stub.ts';
import type { Workspace } from './workspace.ts';

const PROCESS = new URL('./guard-process.js', import.meta.url);

/** What the guard has to know, one line of JSON each, in the order in which it happened. */
export type JournalEntry =
  /** The gdbstub is about to be attached. */
  | {
      readonly kind: 'attach';
      readonly monitor: QmpAddress;
      readonly stub: StubPlan;
      readonly vcpus: number;
      readonly tcg: boolean;
      readonly running: boolean;
    }
  /** The VM was paused by somebody else, or runs again. */
  | { readonly kind: 'running'; readonly running: boolean }
  /** A tool's int3 goes over a byte of guest memory; without `original` it is gone. */
  | { readonly kind: 'patch'; readonly gpa: number; readonly original?: number }
  /** Where a vCPU is that has just been delivered #BP, in hexadecimal. */
  | { readonly kind: 'handler'; readonly gva: string }
  /** The gdbstub was given up; nothing is armed. */
  | { readonly kind: 'detach' };

/**
 * Undoes what this process did to a VM, should it die without doing so itself: a process of its own that reads
 * the journal from a pipe, and acts when the pipe ends while something is attached.
 */
export class Guard {
  readonly #workspace: Workspace;
  #child: ChildProcess | undefined;

  /** `workspace` is removed by the guard, too. */
  constructor(workspace: Workspace) {
    this.#workspace = workspace;
  }

  /**
   * Journals an entry, before what it announces is done. The first one starts the guard, which is not waited for: the
   * pipe keeps what it has not read.
   */
  note(entry: JournalEntry): void {
    this.#child ??= this.#start();
    this.#child.stdin!.write(`${JSON.stringify(entry)}\n`);
  }

  /** Ends the guard. Without a `detach` entry before it, the guard acts. */
  end(): void {
    this.#child?.stdin?.end();
    this.#child = undefined;
  }

  #start(): ChildProcess {
    const child = spawnDetached(PROCESS, [this.#workspace.path], ['pipe', 'ignore', 'ignore']);
    // Without its guard a host goes on as before: it is told nothing that it could do about it.
    child.on('error', () => {});
    child.stdin!.on('error', () => {});
    (child.stdin as { unref?: () => void }).unref?.();
    return child;
  }
}

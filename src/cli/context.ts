import type { Theme } from '../rows/theme.ts';
import type { Command } from './command.ts';
import type { CliLog } from './log.ts';
import type { ProgressLine } from './progress.ts';

/** Why a command is to end before it is done. */
export type EndReason = 'SIGINT' | 'SIGTERM' | 'timeout' | 'closed';

/** What a command works with. */
export interface Context {
  /** Aborted on Ctrl-C, SIGTERM, `--timeout` and when nobody reads the output any more; the reason is an EndReason. */
  readonly signal: AbortSignal;
  readonly log: CliLog;
  /** How far a search or a copy has come, on standard error when it is a terminal. */
  readonly progress: ProgressLine;
  /** Whether standard output is a terminal. */
  readonly terminal: boolean;
  /** For text on standard error. */
  readonly theme: Theme;
  /** The program and its arguments that follow `--`, for a command that runs one. */
  readonly program: readonly string[];
  /** What may end a VM when this process is killed is allowed. */
  readonly unsafe: boolean;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** The description of every command. */
  commands(): Promise<readonly Command[]>;
  /** Says that the result is not complete, and why. */
  partial(reason: string): void;
  /** Writes bytes to standard output; resolves when they are taken. */
  write(bytes: Uint8Array | string): Promise<void>;
  /** Announces what is to be undone on the way out, for who is impatient, until the function that is returned is called. */
  undoing(what: string): () => void;
  /** Decides how the command ends when it does not fail. */
  exitWith(code: number): void;
}

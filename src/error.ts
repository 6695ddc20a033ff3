import type { ErrorCode } from './error-codes.ts';

/** What a {@link KvmiError} carries besides its code: what, where, why, and the next step. */
export interface ErrorDetails {
  /** What the user can do about it, as an imperative sentence or a command to run. */
  readonly hint?: string;
  /** Structured data for programs: addresses, paths, ids. */
  readonly data?: Readonly<Record<string, unknown>>;
  readonly cause?: unknown;
}

/**
 * The base of every error that kvmi throws on purpose.
 *
 * `code` is stable across releases; `error-codes.ts` has them all; `message` says what failed, where and why;
 * `hint` says what to do next.
 */
export class KvmiError extends Error {
  readonly code: ErrorCode;
  readonly hint: string | undefined;
  readonly data: Readonly<Record<string, unknown>>;

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.name = 'KvmiError';
    this.code = code;
    this.hint = details.hint;
    this.data = details.data ?? {};
  }
}

/** What the user wrote is wrong: an argument, an option, the name of a VM. */
export class UsageError extends KvmiError {
  constructor(message: string, hint?: string) {
    super('E_USAGE', message, hint ? { hint } : {});
    this.name = 'UsageError';
  }
}

/** The message of anything that was thrown. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

import { KvmiError, messageOf } from '../error.ts';
import type { ErrorCode } from '../error-codes.ts';
import { printable, printableLines, safeJson } from '../rows/printable.ts';
import { behind } from '../rows/text.ts';
import type { Theme } from '../rows/theme.ts';
import { ERROR_EXITS } from './error-exits.ts';
import { EXIT, type ExitName } from './exit-codes.ts';

/** Codes of operating system errors that mean: you may not. */
const PERMISSION_ERRNOS = new Set(['EACCES', 'EPERM']);

const ERROR_PREFIX = 'kvmi: error: '.length;
const HINT_PREFIX = 'hint: '.length;

/** Codes that say what failed, while the cause says why. */
const CAUSE_DECIDES = new Set<ErrorCode>(['E_HOOK']);

/** How the command ends after `error`. */
export function exitOf(error: unknown): ExitName {
  if (!(error instanceof KvmiError)) return isDenied(error) ? 'permission' : 'error';
  if (isDenied(error.cause)) return 'permission';
  if (CAUSE_DECIDES.has(error.code) && error.cause instanceof KvmiError) return exitOf(error.cause);
  return ERROR_EXITS[error.code];
}

function isDenied(error: unknown): boolean {
  return PERMISSION_ERRNOS.has((error as NodeJS.ErrnoException | undefined)?.code ?? '');
}

export function exitCodeOf(error: unknown): number {
  return EXIT[exitOf(error)].code;
}

/** The fields of an error for programs; `hint` and `data` only when there are some. */
export function errorFields(error: unknown): Record<string, unknown> {
  const known = error instanceof KvmiError ? error : undefined;
  return {
    code: known?.code ?? (error as NodeJS.ErrnoException | undefined)?.code ?? 'E_INTERNAL',
    message: messageOf(error),
    ...(known?.hint && { hint: known.hint }),
    ...(known && Object.keys(known.data).length > 0 && { data: known.data }),
    exit: exitCodeOf(error),
  };
}

/** How an error is shown to people. */
interface ErrorForm {
  readonly verbose: boolean;
  /** Of the terminal; undefined when it goes elsewhere, where a message is one line. */
  readonly width: number | undefined;
}

/** An error for people: what, where and why, its code, and the next step. */
export function errorText(error: unknown, theme: Theme, { verbose, width }: ErrorForm): string {
  const { code, message, hint } = errorFields(error);
  const mark = `[${printable(String(code))}]`;
  const what = behind(ERROR_PREFIX, `${printableLines(String(message))} ${mark}`, width).slice(
    0,
    -mark.length,
  );
  const lines = [`${theme.bold('kvmi:')} ${theme.red('error:')} ${what}${theme.dim(mark)}`];
  if (hint) lines.push(`${theme.cyan('hint:')} ${behind(HINT_PREFIX, printableLines(String(hint)), width)}`);
  const unexpected = !(error instanceof KvmiError) && error instanceof Error;
  if ((verbose || unexpected) && error instanceof Error && error.stack) {
    lines.push(theme.dim(printableLines(error.stack)));
  }
  return lines.join('\n');
}

/** An error as one line of JSON. */
export function errorJson(error: unknown): string {
  return safeJson({ v: 1, level: 'error', ...jsonSafe(errorFields(error)) });
}

/** Numbers that JSON does not have, in what errors carry. */
function jsonSafe(fields: Record<string, unknown>): Record<string, unknown> {
  return JSON.parse(
    JSON.stringify(fields, (_key, value: unknown) =>
      typeof value === 'bigint' ? `0x${value.toString(16)}` : value,
    ),
  );
}

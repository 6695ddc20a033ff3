import type { Log } from '../host/log.ts';
import { printableLines, safeJson } from '../rows/printable.ts';
import { behind } from '../rows/text.ts';
import type { Theme } from '../rows/theme.ts';
import { formatTime, now } from '../rows/time.ts';

export const LOG_FORMATS = ['text', 'json'] as const;
export type LogFormat = (typeof LOG_FORMATS)[number];

const LEVELS = { error: 0, warning: 1, hint: 1, info: 2, debug: 3 } as const;
type Level = keyof typeof LEVELS;

/** Characters in front of a message. */
const PREFIXES: Readonly<Record<Level, number>> = { error: 13, warning: 15, hint: 6, info: 6, debug: 6 };

/** Where everything but data goes: standard error. */
export interface CliLog extends Log {
  debug(message: string): void;
  /** The next step after what was said before. */
  hint(message: string): void;
  /** A line that the command was asked for, such as a summary: shown whatever the verbosity. */
  note(message: string): void;
}

export interface LogSettings {
  readonly format: LogFormat;
  /** 0 shows errors and warnings, 1 adds information, 2 adds details. */
  readonly verbosity: number;
  readonly theme: Theme;
  /** Of the terminal; undefined when it goes elsewhere, where a message is one line. */
  readonly width?: number | undefined;
  write(line: string): void;
}

export function createLog(settings: LogSettings): CliLog {
  const { theme, verbosity } = settings;
  const paint: Readonly<Record<Level, string>> = {
    error: `${theme.bold('kvmi:')} ${theme.red('error:')}`,
    warning: `${theme.bold('kvmi:')} ${theme.yellow('warning:')}`,
    hint: theme.cyan('hint:'),
    info: theme.bold('kvmi:'),
    debug: theme.dim('kvmi:'),
  };
  const line = (level: Level, message: string, shown = LEVELS[level] <= verbosity + 1): void => {
    if (!shown) return;
    settings.write(
      settings.format === 'json'
        ? safeJson({ v: 1, level, time: formatTime(now()), message })
        : `${paint[level]} ${behind(PREFIXES[level], printableLines(message), settings.width)}`,
    );
  };
  return {
    error: (message) => line('error', message),
    warn: (message) => line('warning', message),
    hint: (message) => line('hint', message),
    info: (message) => line('info', message),
    debug: (message) => line('debug', message),
    note: (message) => line('info', message, true),
  };
}

import { commaList, oneOf, seconds, text } from '../input/values.ts';
import { FORMATS } from '../rows/render.ts';
import { COLOR_CHOICES } from '../rows/theme.ts';
import { defaultOption, flag, type OptionValues, repeatedOption, valueOption } from './command.ts';
import { LOG_FORMATS } from './log.ts';

/** Options that every command takes, before or after its name. */
export const COMMON_OPTIONS = {
  output: valueOption(
    '-o, --output <FORMAT>',
    'how to print rows: table, wide, json, jsonl or csv (default: a table; jsonl when a stream is piped)',
    oneOf('--output', FORMATS),
    FORMATS,
  ),
  columns: valueOption('-c, --columns <NAMES>', 'these columns, in this order: pid,name', commaList),
  filter: repeatedOption(
    '--filter <CONDITION>',
    "only rows that meet it: 'column=value', 'column~regex', 'column>number'; repeatable",
    text,
  ),
  quiet: flag('-q, --quiet', 'only the key of each row'),
  strict: flag('--strict', 'end with 7 when the result is not complete'),
  timeout: valueOption('--timeout <SECONDS>', 'end cleanly after that time, with 124', seconds('--timeout')),
  unsafe: flag(
    '--unsafe',
    'on stock KVM, do also what may end a VM when kvmi is killed: see "Guest safety" in the documentation',
  ),
  verbose: { ...flag('-v, --verbose', 'say more on standard error; -vv for details'), repeatable: true },
  logFormat: defaultOption(
    '--log-format <FORMAT>',
    'what standard error gets: text or json',
    oneOf('--log-format', LOG_FORMATS),
    'text',
    LOG_FORMATS,
  ),
  color: defaultOption(
    '--color <WHEN>',
    'auto, always or never',
    oneOf('--color', COLOR_CHOICES),
    'auto',
    COLOR_CHOICES,
  ),
} as const;

export type CommonSettings = Omit<OptionValues<typeof COMMON_OPTIONS>, 'verbose'> & {
  readonly verbose: number;
};

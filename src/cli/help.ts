import { padded, STANDARD_WIDTH, wrapped } from '../rows/text.ts';
import type { Theme } from '../rows/theme.ts';
import type { Argument, Command, Option, OptionTable } from './command.ts';
import { COMMANDS } from './commands/index.ts';
import { EXIT } from './exit-codes.ts';
import { COMMON_OPTIONS } from './settings.ts';
import { targetTerms } from './targets.ts';

interface Entry {
  readonly term: string;
  readonly about: string;
}

function section(title: string, lines: readonly string[], theme: Theme): string {
  return `${theme.bold(`${title}:`)}\n${lines.map((line) => `  ${line}`.trimEnd()).join('\n')}\n`;
}

function entryLines(entries: readonly Entry[], width: number): string[] {
  const indent = Math.min(32, Math.max(...entries.map(({ term }) => term.length)) + 2);
  return entries.flatMap(({ term, about }) => {
    const lines = wrapped(about, width - indent - 2);
    if (term.length >= indent) return [term, ...lines.map((line) => ' '.repeat(indent) + line)];
    return lines.map((line, i) => padded(i === 0 ? term : '', indent) + line);
  });
}

/** What an option's value is when it is not given, if that says something. */
export function defaultText({ default: standard }: Option<unknown>): string {
  const isPlain = typeof standard === 'string' || typeof standard === 'number';
  return isPlain ? ` (default: ${standard})` : '';
}

function optionEntries(options: OptionTable): Entry[] {
  return Object.values(options).map((option) => ({
    term: option.flags.startsWith('--') ? `    ${option.flags}` : option.flags,
    about: option.about + defaultText(option),
  }));
}

/** `kvmi read [options] <VM> <ADDRESS> [SIZE]` */
export function usage(command: Command): string {
  const operands = command.arguments.map(({ name, optional }: Argument<unknown>) =>
    optional ? `[${name}]` : `<${name}>`,
  );
  const program = command.runsProgram ? ['--', '<PROGRAM>', '[ARGUMENT…]'] : [];
  return ['kvmi', command.name, '[options]', ...operands, ...program].join(' ');
}

function targetEntries(): Entry[] {
  return targetTerms().map(([term, about]) => ({ term, about }));
}

function exitEntries(): Entry[] {
  return Object.values(EXIT).map(({ code, meaning }) => ({ term: String(code).padStart(3), about: meaning }));
}

/** Help of one command, in lines of `width` characters; examples come first. */
export function commandHelp(command: Command, theme: Theme, width = STANDARD_WIDTH): string {
  const entriesOf = (title: string, entries: readonly Entry[]): string =>
    section(title, entryLines(entries, width), theme);
  const examples = command.examples.flatMap(({ command: line, does }) => [theme.dim(`# ${does}`), line]);
  const parts = [
    section('Examples', examples, theme),
    section('Usage', [usage(command)], theme),
    `${[command.summary, ...(command.description ?? [])].map((text) => wrapped(text, width).join('\n')).join('\n\n')}\n`,
  ];
  if (command.arguments.length > 0) {
    const entries = command.arguments.map(({ name, about }) => ({ term: name, about }));
    parts.push(entriesOf('Arguments', entries));
  }
  if (command.arguments[0]?.name === 'VM') parts.push(entriesOf('VM is one of', targetEntries()));
  if (Object.keys(command.options).length > 0) {
    parts.push(entriesOf('Options', optionEntries(command.options)));
  }
  parts.push(entriesOf('Common options', optionEntries(COMMON_OPTIONS)));
  if (command.columns.length > 0) {
    const entries = command.columns.map(({ name, about }) => ({ term: name, about }));
    parts.push(entriesOf('Columns', entries));
  }
  parts.push(entriesOf('Exit codes', exitEntries()));
  return parts.join('\n');
}

const EXAMPLES = [
  { does: 'which VMs run here, and how each can be hooked', command: 'kvmi list' },
  {
    does: 'the registers of a machine that lives in this process: no VM needed',
    command: 'kvmi regs embedded:',
  },
  {
    does: 'hook a VM to a tool that listens on a socket',
    command: 'kvmi hook VM --tool unix:/run/tool.sock',
  },
];

/** Help of `kvmi` itself. */
export function programHelp(theme: Theme, width = STANDARD_WIDTH): string {
  const entriesOf = (title: string, entries: readonly Entry[]): string =>
    section(title, entryLines(entries, width), theme);
  const commands = Object.entries(COMMANDS).map(([term, { summary }]) => ({ term, about: summary }));
  return [
    section(
      'Examples',
      EXAMPLES.flatMap(({ does, command }) => [theme.dim(`# ${does}`), command]),
      theme,
    ),
    section('Usage', ['kvmi <COMMAND> [options] [VM] …'], theme),
    entriesOf('Commands', commands),
    entriesOf('VM is one of', targetEntries()),
    entriesOf('Common options', optionEntries(COMMON_OPTIONS)),
    entriesOf('Exit codes', exitEntries()),
    'kvmi COMMAND --help explains a command.\n',
  ].join('\n');
}

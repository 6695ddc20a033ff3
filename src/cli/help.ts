import { padded, wrapped } from '../rows/text.ts';
import type { Theme } from '../rows/theme.ts';
import type { Argument, Command, Option, OptionTable } from './command.ts';
import { COMMANDS } from './commands/index.ts';
import { exitCodeLines } from './exit-codes.ts';
import { COMMON_OPTIONS } from './settings.ts';
import { targetTerms } from './targets.ts';

const WIDTH = 100;

interface Entry {
  readonly term: string;
  readonly about: string;
}

function section(title: string, lines: readonly string[], theme: Theme): string {
  return `${theme.bold(`${title}:`)}\n${lines.map((line) => `  ${line}`.trimEnd()).join('\n')}\n`;
}

function entryLines(entries: readonly Entry[]): string[] {
  const width = Math.min(32, Math.max(...entries.map(({ term }) => term.length)) + 2);
  return entries.flatMap(({ term, about }) => {
    const lines = wrapped(about, WIDTH - width - 2);
    if (term.length >= width) return [term, ...lines.map((line) => ' '.repeat(width) + line)];
    return lines.map((line, i) => padded(i === 0 ? term : '', width) + line);
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

function targetLines(): string[] {
  return entryLines(targetTerms().map(([term, about]) => ({ term, about })));
}

/** Help of one command; examples come first. */
export function commandHelp(command: Command, theme: Theme): string {
  const examples = command.examples.flatMap(({ command: line, does }) => [theme.dim(`# ${does}`), line]);
  const parts = [
    section('Examples', examples, theme),
    section('Usage', [usage(command)], theme),
    `${[command.summary, ...(command.description ?? [])].map((text) => wrapped(text, WIDTH).join('\n')).join('\n\n')}\n`,
  ];
  if (command.arguments.length > 0) {
    const entries = command.arguments.map(({ name, about }) => ({ term: name, about }));
    parts.push(section('Arguments', entryLines(entries), theme));
  }
  if (command.arguments[0]?.name === 'VM') parts.push(section('VM is one of', targetLines(), theme));
  if (Object.keys(command.options).length > 0) {
    parts.push(section('Options', entryLines(optionEntries(command.options)), theme));
  }
  parts.push(section('Common options', entryLines(optionEntries(COMMON_OPTIONS)), theme));
  if (command.columns.length > 0) {
    const entries = command.columns.map(({ name, about }) => ({ term: name, about }));
    parts.push(section('Columns', entryLines(entries), theme));
  }
  parts.push(section('Exit codes', exitCodeLines(), theme));
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
export function programHelp(theme: Theme): string {
  const commands = Object.entries(COMMANDS).map(([term, { summary }]) => ({ term, about: summary }));
  return [
    section(
      'Examples',
      EXAMPLES.flatMap(({ does, command }) => [theme.dim(`# ${does}`), command]),
      theme,
    ),
    section('Usage', ['kvmi <COMMAND> [options] [VM] …'], theme),
    section('Commands', entryLines(commands), theme),
    section('VM is one of', targetLines(), theme),
    section('Common options', entryLines(optionEntries(COMMON_OPTIONS)), theme),
    section('Exit codes', exitCodeLines(), theme),
    'kvmi COMMAND --help explains a command.\n',
  ].join('\n');
}

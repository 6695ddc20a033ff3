import { CommanderError, Command as Parser, Option as ParserOption } from 'commander';
import { UsageError } from '../error.ts';
import { didYouMean } from '../input/suggest.ts';
import type { Command, Option, OptionTable } from './command.ts';
import { COMMANDS } from './commands/index.ts';
import { COMMON_OPTIONS, type CommonSettings } from './settings.ts';

/** What a command line asks for. */
export type Invocation =
  | {
      readonly kind: 'run';
      readonly command: Command;
      readonly arguments: readonly unknown[];
      readonly options: Readonly<Record<string, unknown>>;
      /** What follows `--`, for a command that runs a program. */
      readonly program: readonly string[];
      readonly settings: CommonSettings;
    }
  /** Help of a command, or of `kvmi` itself. */
  | { readonly kind: 'help'; readonly command?: Command; readonly settings: CommonSettings };

/**
 * Understands a command line. Only the description of the command that it names is loaded.
 *
 * @throws UsageError.
 */
export async function parseCommandLine(argv: readonly string[]): Promise<Invocation> {
  const wantsHelp = argv[0] === 'help' || argv.length === 0;
  const [words, toRun] = splitProgram(argv[0] === 'help' ? argv.slice(1) : argv);
  const program = parser('kvmi');
  addOptions(program, COMMON_OPTIONS);
  program.addOption(new ParserOption('-h, --help').hideHelp());
  program.addOption(new ParserOption('-V, --version').hideHelp());
  const named = commandWord(words);
  if (named !== undefined && !Object.hasOwn(COMMANDS, named)) throw unknownCommand(named);
  let invocation: Invocation | undefined;
  const described = new Map<string, Command>();
  for (const name of Object.keys(COMMANDS)) {
    const sub = parser(name);
    sub.action(() => {
      const command = described.get(name)!;
      const values = sub.opts<Record<string, unknown>>();
      const settings = settingsOf(program.opts());
      const { help } = program.opts();
      invocation =
        help || wantsHelp
          ? { kind: 'help', command, settings }
          : { kind: 'run', command, arguments: sub.processedArgs, options: values, program: toRun, settings };
    });
    program.addCommand(sub);
  }
  program.hook('preSubcommand', async (_program, sub) => {
    const command = await COMMANDS[sub.name()]!.load();
    described.set(sub.name(), command);
    describe(sub, command, wantsHelp || program.opts().help === true);
  });
  program.action(() => {
    const { help, version } = program.opts();
    if (version) return;
    if (!help && !wantsHelp) throw new UsageError('a command is missing', 'kvmi --help lists them.');
    invocation = { kind: 'help', settings: settingsOf(program.opts()) };
  });
  try {
    await program.parseAsync([...words], { from: 'user' });
  } catch (error) {
    throw error instanceof CommanderError ? usageError(error, described) : error;
  }
  return invocation ?? versionInvocation(settingsOf(program.opts()));
}

async function versionInvocation(settings: CommonSettings): Promise<Invocation> {
  const command = await COMMANDS.version!.load();
  return { kind: 'run', command, arguments: [], options: {}, program: [], settings };
}

/** Common options that take a value: `-o`, `--output`. */
const WITH_VALUE: ReadonlySet<string> = new Set(
  Object.values(COMMON_OPTIONS)
    .map((option: Option<unknown>) => option.flags)
    .filter((flags) => flags.includes('<'))
    .flatMap((flags) => flags.replace(/ <.*/, '').split(', ')),
);

/** The first word that is neither an option nor the value of one. */
function commandWord(words: readonly string[]): string | undefined {
  return words.find((word, i) => !word.startsWith('-') && !WITH_VALUE.has(words[i - 1] ?? ''));
}

/** Takes off `-- PROGRAM ARGUMENT…`, of which no word is ours, when the command runs a program. */
function splitProgram(words: readonly string[]): [words: readonly string[], program: readonly string[]] {
  const command = commandWord(words);
  const separator = words.indexOf('--');
  if (separator < 0 || command === undefined || !COMMANDS[command]?.runsProgram) return [words, []];
  return [words.slice(0, separator), words.slice(separator + 1)];
}

function parser(name: string): Parser {
  return new Parser(name)
    .helpOption(false)
    .helpCommand(false)
    .exitOverride()
    .configureOutput({ writeErr() {}, writeOut() {} });
}

/** Tells the parser what a command takes. For help nothing is required. */
function describe(sub: Parser, command: Command, forHelp: boolean): void {
  for (const { name, optional, parse } of command.arguments) {
    sub.argument(optional || forHelp ? `[${name}]` : `<${name}>`, '', (text: string) => parse(text));
  }
  addOptions(sub, command.options);
  if (forHelp) sub.allowExcessArguments();
}

function addOptions(to: Parser, options: OptionTable): void {
  for (const [key, option] of Object.entries(options)) {
    const made = new ParserOption(option.flags);
    if (made.attributeName() !== key) throw new Error(`option ${option.flags} is called ${key}`);
    to.addOption(made);
    const { parse, repeatable } = option;
    if (parse && repeatable) {
      made.argParser((text: string, before: readonly unknown[]) => [...(before ?? []), parse(text)]);
    } else if (parse) {
      made.argParser((text: string) => parse(text));
    } else if (repeatable) {
      made.argParser((_text: string, before: number) => Number(before) + 1);
    }
    to.setOptionValueWithSource(key, option.default, 'default');
  }
}

function settingsOf(values: Readonly<Record<string, unknown>>): CommonSettings {
  return { ...(values as CommonSettings), verbose: Number(values.verbose) };
}

function unknownCommand(name: string): UsageError {
  const hint = didYouMean(name, Object.keys(COMMANDS)) ?? 'kvmi --help lists them.';
  return new UsageError(`there is no command ${JSON.stringify(name)}`, hint);
}

/** What the parser found wrong, in our words for the cases that its own do not fit. */
function usageError(error: CommanderError, described: ReadonlyMap<string, Command>): UsageError {
  const [name] = described.keys();
  const [first = '', suggestion] = error.message.replace(/^error: /, '').split('\n');
  const close = suggestion ? /Did you mean (.+)\?/.exec(suggestion)?.[1] : undefined;
  const help = name ? `kvmi ${name} --help shows what it takes.` : 'kvmi --help lists commands and options.';
  return new UsageError(first, close ? `Did you mean ${close}?` : help);
}

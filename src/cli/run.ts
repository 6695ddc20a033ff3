import { writeSync } from 'node:fs';
import { isatty } from 'node:tty';
import { messageOf } from '../error.ts';
import type { Row } from '../rows/columns.ts';
import { checkSettings, type Output, type OutputSettings, render } from '../rows/render.ts';
import { themeFor } from '../rows/theme.ts';
import type { Command } from './command.ts';
import { loadCommands } from './commands/index.ts';
import type { Context } from './context.ts';
import { errorFields, errorJson, errorText, exitCodeOf } from './errors.ts';
import { EXIT } from './exit-codes.ts';
import { EXIT_OF_END, Interruption, whenAborted } from './interruption.ts';
import { createLog } from './log.ts';
import { type Invocation, parseCommandLine } from './program.ts';
import { NO_PROGRESS, progressLine } from './progress.ts';
import type { CommonSettings } from './settings.ts';
import { Stdout } from './stdout.ts';

/** What a command that was told to end may still take for it. */
const GRACE_MS = 15_000;
/** A reader that takes nothing for so long is told of. */
const UNREAD_MS = 3000;
/** What is printed on the way out is for a reader who still reads. */
const LAST_MS = 1000;
const STDERR = 2;
/** With this verbosity nothing is shown. */
const SILENT = -2;

/** Carries out a command line and returns the exit code. Everything was written when it resolves. */
export async function run(argv: readonly string[]): Promise<number> {
  let invocation: Invocation;
  try {
    invocation = await parseCommandLine(argv);
  } catch (error) {
    return fail(error, earlySettings(argv));
  }
  const { settings } = invocation;
  const runsProgram = invocation.kind === 'run' && invocation.command.runsProgram === true;
  const interruption = new Interruption(settings.timeout, !runsProgram);
  const stdout = new Stdout(() => interruption.end('closed'));
  // A terminal that was closed takes no messages; the VM is let go all the same.
  if (!runsProgram) process.stderr.on('error', () => {});
  try {
    if (invocation.kind === 'run') return await new Execution(invocation, interruption, stdout).run();
    const { commandHelp, programHelp } = await import('./help.ts');
    const theme = themeFor({ isTTY: stdout.terminal }, settings.color, process.env);
    const { width } = stdout;
    const text = invocation.command
      ? commandHelp(invocation.command, theme, width)
      : programHelp(theme, width);
    await stdout.write(text);
    return EXIT.ok.code;
  } catch (error) {
    return fail(error, settings);
  } finally {
    interruption.dispose();
  }
}

/** How to print an error of a command line that was not understood. */
function earlySettings(argv: readonly string[]): Pick<CommonSettings, 'logFormat' | 'color' | 'verbose'> {
  const asJson = argv.some(
    (word, i) => word === '--log-format=json' || (word === 'json' && argv[i - 1] === '--log-format'),
  );
  return { logFormat: asJson ? 'json' : 'text', color: 'auto', verbose: 0 };
}

function fail(error: unknown, settings: Pick<CommonSettings, 'logFormat' | 'color' | 'verbose'>): number {
  const theme = themeFor(process.stderr, settings.color, process.env);
  const text =
    settings.logFormat === 'json'
      ? errorJson(error)
      : errorText(error, theme, {
          verbose: settings.verbose > 1,
          width: process.stderr.columns || undefined,
        });
  process.stderr.write(`${text}\n`);
  return exitCodeOf(error);
}

/** Writes to the standard error that a program shares, without making it non-blocking. */
function writeShared(text: string): void {
  try {
    writeSync(STDERR, text);
  } catch {
    // The program's reader is gone or slow: the program matters more than the log.
  }
}

/** One run of a command. */
class Execution {
  readonly #command: Command;
  readonly #invocation: Invocation & { kind: 'run' };
  readonly #interruption: Interruption;
  readonly #stdout: Stdout;
  readonly #reasons: string[] = [];
  readonly #unread: NodeJS.Timeout | undefined;
  #writing = false;
  readonly #context: Context;
  /** Rows of the command, before filters. */
  #rows = 0;
  #exit: number = EXIT.ok.code;

  constructor(invocation: Invocation & { kind: 'run' }, interruption: Interruption, stdout: Stdout) {
    this.#command = invocation.command;
    this.#invocation = invocation;
    this.#interruption = interruption;
    this.#stdout = stdout;
    this.#context = this.#makeContext(invocation.settings);
    if (this.#command.stream) this.#unread = this.#watchReader();
    void whenAborted(interruption.signal).then(() => setTimeout(() => stdout.giveUp(), LAST_MS).unref());
    interruption.onRefusedStop = () =>
      this.#context.log.warn('kvmi does not stop while it has a VM, which would stand still; Ctrl-C ends it');
    interruption.onInsistence = (undoing) =>
      this.#context.log.warn(
        `still ${undoing.join(', ')}, where what is armed is taken back first; once more ends kvmi at once and leaves that to the guard`,
      );
  }

  async run(): Promise<number> {
    const work = this.#print();
    const overdue = this.#overdue();
    try {
      await Promise.race([work, overdue.promise]);
    } catch (error) {
      if (!this.#interruption.reason) throw error;
      // Told to end, a command fails in any number of ways, because what it worked with is closed.
      this.#context.log.debug(`while ending: ${String(errorFields(error).code)}: ${messageOf(error)}`);
    } finally {
      overdue.cancel();
    }
    const { reason } = this.#interruption;
    if (reason) return EXIT_OF_END[reason];
    return this.#checkReasons();
  }

  #makeContext(settings: CommonSettings): Context {
    const onTerminal = isatty(STDERR);
    const theme = themeFor({ isTTY: onTerminal }, settings.color, process.env);
    const { runsProgram, verbose } = this.#command;
    const silent = runsProgram && settings.verbose === 0;
    const write = runsProgram ? writeShared : (text: string) => void process.stderr.write(text);
    const shown = onTerminal && settings.logFormat === 'text' && !settings.quiet && !runsProgram;
    const progress = shown ? progressLine(write) : NO_PROGRESS;
    return {
      signal: this.#interruption.signal,
      progress,
      log: createLog({
        format: settings.logFormat,
        verbosity: silent ? SILENT : settings.verbose + (verbose ? 1 : 0),
        theme,
        width: onTerminal && !runsProgram ? process.stderr.columns || undefined : undefined,
        write: (line) => {
          progress.clear();
          write(`${line}\n`);
        },
      }),
      terminal: this.#stdout.terminal,
      theme,
      program: this.#invocation.program,
      unsafe: settings.unsafe,
      env: process.env,
      commands: loadCommands,
      partial: (reason) => {
        this.#reasons.push(reason);
      },
      write: (bytes) => this.#stdout.write(bytes),
      undoing: (what) => this.#interruption.undoing(what),
      exitWith: (code) => {
        this.#exit = code;
      },
    };
  }

  async #print(): Promise<void> {
    const { settings, arguments: args, options } = this.#invocation;
    const command = this.#command;
    const outputSettings = outputSettingsOf(settings);
    checkSettings(outputSettings, command.columns);
    const shown = command.shown?.(options as never);
    const output: Output = {
      command: command.name,
      columns: command.columns,
      rows: this.#counted(command.run(this.#context, args as never, options as never)),
      stream: command.stream === true,
      ...(shown && { shown }),
      ...(command.text && { text: command.text.bind(command) }),
      reasons: this.#reasons,
    };
    if (command.columns.length === 0) {
      for await (const _ of output.rows);
      return;
    }
    const { terminal, width } = this.#stdout;
    const theme = themeFor({ isTTY: terminal }, settings.color, process.env);
    const destination = { terminal, theme, ...(width !== undefined && { width }) };
    let lines = 0;
    for await (const line of render(output, outputSettings, destination)) {
      await this.#emit(`${line}\n`);
      lines++;
    }
    if (lines === 0) this.#tellNothing(outputSettings);
  }

  async #emit(text: string): Promise<void> {
    this.#unread?.refresh();
    this.#writing = true;
    await this.#stdout.write(text);
    this.#writing = false;
  }

  /** Commands whose rows are events hold the guest until these are read. */
  #watchReader(): NodeJS.Timeout {
    const unread = setTimeout(() => {
      if (this.#writing)
        this.#context.log.warn('what is printed is not read: the guest stands still until it is');
    }, UNREAD_MS);
    return unread.unref();
  }

  async *#counted(rows: AsyncIterable<Row>): AsyncGenerator<Row> {
    for await (const row of rows) {
      this.#rows++;
      yield row;
    }
  }

  /** Says that there is nothing to people, who would wonder. */
  #tellNothing({ format, quiet, filters }: OutputSettings): void {
    const forPeople = !quiet && (format === undefined || format === 'table' || format === 'wide');
    if (!forPeople || this.#interruption.reason) return;
    const { nothing } = this.#command;
    if (this.#rows > 0) this.#context.log.note(`none of ${this.#rows} rows meets ${filters.join(' and ')}`);
    else if (nothing !== undefined) this.#context.log.note(nothing);
  }

  /** Fails when the command has not ended a while after it was told to. */
  #overdue(): { readonly promise: Promise<never>; cancel(): void } {
    let timer: NodeJS.Timeout | undefined;
    const promise = whenAborted(this.#interruption.signal).then(
      () =>
        new Promise<never>((_resolve, reject) => {
          timer = setTimeout(() => {
            const left = this.#interruption.undone ? 'leaving it' : 'the guard does what is left';
            this.#context.log.error(`the command did not end within ${GRACE_MS / 1000} s; ${left}`);
            reject(new Error('overdue'));
          }, GRACE_MS);
        }),
    );
    return { promise, cancel: () => clearTimeout(timer) };
  }

  #checkReasons(): number {
    for (const reason of this.#reasons) this.#context.log.warn(`not complete: ${reason}`);
    const strict = this.#invocation.settings.strict && this.#reasons.length > 0;
    return strict && this.#exit === EXIT.ok.code ? EXIT.partial.code : this.#exit;
  }
}

function outputSettingsOf(settings: CommonSettings): OutputSettings {
  const { output, columns, filter, quiet } = settings;
  return { ...(output && { format: output }), ...(columns && { columns }), filters: filter, quiet };
}

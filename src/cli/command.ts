import type { Parse } from '../input/values.ts';
import type { Column, Row } from '../rows/columns.ts';
import type { Theme } from '../rows/theme.ts';
import type { Context } from './context.ts';

/** A positional argument. */
export interface Argument<T> {
  /** As help shows it: `VM`. */
  readonly name: string;
  readonly about: string;
  readonly parse: Parse<T>;
  readonly optional: boolean;
}

/** An option: `T` is what a command gets. */
export interface Option<T> {
  /** As help shows it: `-o, --output <FORMAT>`. */
  readonly flags: string;
  readonly about: string;
  /** Undefined: the option takes no value. */
  readonly parse?: Parse<unknown>;
  /** Given several times, its values are collected. */
  readonly repeatable: boolean;
  /** Words that can be completed. */
  readonly choices?: readonly string[];
  readonly default: T;
}

export function argument<T>(name: string, about: string, parse: Parse<T>): Argument<T> {
  return { name, about, parse, optional: false };
}

export function optionalArgument<T>(name: string, about: string, parse: Parse<T>): Argument<T | undefined> {
  return { name, about, parse, optional: true };
}

/** An option without a value. */
export function flag(flags: string, about: string): Option<boolean> {
  return { flags, about, repeatable: false, default: false };
}

/** An option with a value. */
export function valueOption<T>(
  flags: string,
  about: string,
  parse: Parse<T>,
  choices?: readonly string[],
): Option<T | undefined> {
  return { flags, about, parse, repeatable: false, default: undefined, ...(choices && { choices }) };
}

/** An option with a value that it has when it is not given, too. */
export function defaultOption<T>(
  flags: string,
  about: string,
  parse: Parse<T>,
  standard: T,
  choices?: readonly string[],
): Option<T> {
  return { flags, about, parse, repeatable: false, default: standard, ...(choices && { choices }) };
}

/** An option that may be given several times. */
export function repeatedOption<T>(flags: string, about: string, parse: Parse<T>): Option<readonly T[]> {
  return { flags, about, parse, repeatable: true, default: [] };
}

export type OptionTable = Readonly<Record<string, Option<unknown>>>;
export type OptionValues<O extends OptionTable> = {
  readonly [K in keyof O]: O[K] extends Option<infer T> ? T : never;
};
export type ArgumentValues<A extends readonly Argument<unknown>[]> = {
  readonly [I in keyof A]: A[I] extends Argument<infer T> ? T : never;
};

export interface Example {
  readonly command: string;
  readonly does: string;
}

/** What a subcommand is, and what it does. Parsing, help, completion and documentation are made of it. */
export interface Command<
  A extends readonly Argument<unknown>[] = readonly Argument<unknown>[],
  O extends OptionTable = OptionTable,
> {
  readonly name: string;
  /** One line, without a full stop. */
  readonly summary: string;
  /** Paragraphs for help and documentation. */
  readonly description?: readonly string[];
  readonly arguments: A;
  readonly options: O;
  /** At most three; help starts with them. */
  readonly examples: readonly Example[];
  /** What the rows have. None: the command prints no rows. */
  readonly columns: readonly Column[];
  /** Rows come one by one over time. */
  readonly stream?: boolean;
  /** Lines of the log that are shown without `-v`, too, when they only inform. */
  readonly verbose?: boolean;
  /**
   * Takes `-- PROGRAM ARGUMENT…` and runs it. Standard input and output and the signals of this process are the
   * program's, so is standard error unless `-v` is given.
   */
  readonly runsProgram?: boolean;
  /** What people are told when there are no rows: `no sockets`. */
  readonly nothing?: string;
  /** Columns of the table when options change them. */
  shown?(options: OptionValues<O>): readonly string[] | undefined;
  /** The form for people, when a table is not it. Lines must be safe for a terminal, of which `width` is the width. */
  text?(rows: AsyncIterable<Row>, theme: Theme, width?: number): AsyncIterable<string>;
  /** Does it. Rows are pulled as they are printed; what was acquired is released in `finally`. */
  run(context: Context, args: ArgumentValues<A>, options: OptionValues<O>): AsyncIterable<Row>;
}

/** Ties the types of arguments and options to `run`. */
export function command<const A extends readonly Argument<unknown>[], const O extends OptionTable>(
  description: Command<A, O>,
): Command {
  return description as unknown as Command;
}

import { UsageError } from '../error.ts';
import { type Column, plainText, type Row } from './columns.ts';
import { csv } from './csv.ts';
import { columnNamed, parseFilter } from './filter.ts';
import { json, jsonLines } from './json.ts';
import { printable } from './printable.ts';
import { streamTable, type TableOptions, table } from './table.ts';
import type { Theme } from './theme.ts';

export const FORMATS = ['table', 'wide', 'json', 'jsonl', 'csv'] as const;
export type Format = (typeof FORMATS)[number];

/** How the user wants rows to be printed. */
export interface OutputSettings {
  /** Undefined: what suits the command and where its output goes. */
  readonly format?: Format;
  readonly columns?: readonly string[];
  readonly filters: readonly string[];
  /** Only the key of each row. */
  readonly quiet: boolean;
}

/** What a command prints. */
export interface Output {
  readonly command: string;
  readonly columns: readonly Column[];
  readonly rows: AsyncIterable<Row>;
  /** Rows come one by one, over time. */
  readonly stream: boolean;
  /** Columns of a table when they are not the ones that are not `wide`. */
  readonly shown?: readonly string[];
  /** The command's own form for people, for lines of `width` characters; lines are safe for a terminal. */
  readonly text?: (rows: AsyncIterable<Row>, theme: Theme, width?: number) => AsyncIterable<string>;
  /** Why the result is not complete; looked at after the last row. */
  readonly reasons: readonly string[];
}

/** What is known about where the output goes. */
export interface Destination {
  readonly terminal: boolean;
  /** Characters in a line of the terminal. */
  readonly width?: number;
  readonly theme: Theme;
}

/** Parses everything that can be wrong about `settings`, before the command does anything. */
export function checkSettings(settings: OutputSettings, columns: readonly Column[]): void {
  for (const filter of settings.filters) parseFilter(filter, columns);
  if (settings.columns?.length === 0) throw new UsageError('--columns: no column is named');
  for (const name of settings.columns ?? []) columnNamed(name, columns);
}

/** The lines to print. */
export function render(
  output: Output,
  settings: OutputSettings,
  destination: Destination,
): AsyncIterable<string> {
  const filters = settings.filters.map((filter) => parseFilter(filter, output.columns));
  const rows = filters.length === 0 ? output.rows : filtered(output.rows, filters);
  const chosen = settings.columns?.map((name) => columnNamed(name, output.columns));
  if (settings.quiet) return keys(output.columns, rows);
  const { theme, width } = destination;
  const layout: TableOptions = { theme, keep: chosen !== undefined, ...(width !== undefined && { width }) };
  const format = settings.format ?? (output.stream && !destination.terminal ? 'jsonl' : undefined);
  switch (format) {
    case 'json':
      return json(chosen ?? output.columns, rows, output);
    case 'jsonl':
      return jsonLines(chosen ?? output.columns, rows, output);
    case 'csv':
      return csv(chosen ?? output.columns, rows);
    case 'wide':
      return forPeople(output, chosen ?? output.columns, rows, { theme });
    case 'table':
      return forPeople(output, chosen ?? shownColumns(output), rows, layout);
    case undefined:
      if (output.text && !chosen) return output.text(rows, theme, width);
      return forPeople(output, chosen ?? shownColumns(output), rows, layout);
  }
}

function shownColumns(output: Output): readonly Column[] {
  if (output.shown) return output.shown.map((name) => columnNamed(name, output.columns));
  return output.columns.filter((column) => !column.wide);
}

function forPeople(
  output: Output,
  columns: readonly Column[],
  rows: AsyncIterable<Row>,
  layout: TableOptions,
): AsyncIterable<string> {
  return output.stream ? streamTable(columns, rows, layout.theme) : table(columns, rows, layout);
}

async function* filtered(
  rows: AsyncIterable<Row>,
  filters: readonly ((row: Row) => boolean)[],
): AsyncGenerator<Row> {
  for await (const row of rows) if (filters.every((filter) => filter(row))) yield row;
}

async function* keys(columns: readonly Column[], rows: AsyncIterable<Row>): AsyncGenerator<string> {
  const shown = columns.filter((column) => column.key);
  for await (const row of rows) {
    yield shown.map(({ name, kind }) => printable(plainText(kind, row[name]))).join('\t');
  }
}

import {
  type Column,
  type ColumnOf,
  cellText,
  isRightAligned,
  type Row,
  type RowSource,
  rowOf,
} from './columns.ts';
import { displayWidth, fitted, printable } from './printable.ts';
import { PLAIN, type Theme } from './theme.ts';

const GAP = '  ';
/** A column that may be cut keeps so many characters as long as there are others that the table can do without … */
const READABLE = 24;
/** … and so many in any case. */
const LEAST_CUT = 12;
/** Where nothing is cut, a wider cell widens its own line only: one long name is not the width of every row. */
const WIDEST = 100;

function text(column: Column, row: Row): string {
  return printable(cellText(column.kind, row[column.name]));
}

function aligned(column: Column, value: string, width: number, last: boolean): string {
  const fill = ' '.repeat(Math.max(0, width - displayWidth(value)));
  if (isRightAligned(column.kind)) return fill + value;
  return last ? value : value + fill;
}

function line(
  columns: readonly Column[],
  values: readonly string[],
  widths: readonly number[],
  cuts = true,
): string {
  const last = columns.length - 1;
  return columns
    .map((column, i) => {
      const value = cuts ? fitted(values[i]!, widths[i]!) : values[i]!;
      return aligned(column, value, widths[i]!, i === last);
    })
    .join(GAP)
    .trimEnd();
}

function heading(columns: readonly Column[], widths: readonly number[], theme: Theme): string {
  const titles = columns.map((column) => column.name.toUpperCase());
  return theme.bold(line(columns, titles, widths));
}

function totalOf(widths: readonly number[]): number {
  return widths.reduce((sum, width) => sum + width, 0) + GAP.length * (widths.length - 1);
}

/** Takes what is too much from the widest columns that may be cut. */
function shrunk(
  columns: readonly Column[],
  natural: readonly number[],
  available: number,
  least: number,
): number[] {
  const widths = [...natural];
  for (let excess = totalOf(widths) - available; excess > 0; excess = totalOf(widths) - available) {
    let widest = -1;
    for (const [i, column] of columns.entries()) {
      if (column.cut && widths[i]! > Math.max(least, widths[widest] ?? 0)) widest = i;
    }
    if (widest < 0) break;
    widths[widest] = Math.max(least, widths[widest]! - excess);
  }
  return widths;
}

/** A column of a table: its cells as text, and how wide the widest is. */
interface Filled {
  readonly column: Column;
  readonly values: readonly string[];
  readonly width: number;
}

function filled(column: Column, rows: readonly Row[]): Filled {
  const values = rows.map((row) => text(column, row));
  const width = values.reduce((most, value) => Math.max(most, displayWidth(value)), column.name.length);
  return { column, values, width };
}

/** Which column a table has to do without next, to be no wider than `width`; -1 when none. */
function dispensable(columns: readonly Filled[], widths: readonly number[], width: number): number {
  if (totalOf(columns.map((each) => each.width)) <= width) return -1;
  const empty = columns.findIndex(
    ({ column, values }) => !column.key && values.every((value) => value === ''),
  );
  if (empty >= 0 || totalOf(widths) <= width) return empty;
  const ranks = columns.map(({ column }) => column.drop ?? 0);
  const highest = Math.max(...ranks);
  return highest > 0 ? ranks.lastIndexOf(highest) : -1;
}

/** How a table is laid out. */
export interface TableOptions {
  /** Colours of the headings; none unless told. */
  readonly theme?: Theme;
  /** Characters in a line of the terminal; undefined: lines are as long as they are. */
  readonly width?: number;
  /** Every column stays, however narrow the terminal is. */
  readonly keep?: boolean;
}

/**
 * Lines of a table: headings, then a line for each row, as wide as the cells. With `width`, empty
 * columns are left out, then text is cut, then columns that the table can do without go, until a line fits it. No rows
 * make no lines.
 */
export function tableLines(
  columns: readonly Column[],
  rows: readonly Row[],
  { theme = PLAIN, width = Number.POSITIVE_INFINITY, keep = false }: TableOptions = {},
): string[] {
  if (rows.length === 0) return [];
  const shown = columns.map((column) => filled(column, rows));
  for (;;) {
    const chosen = shown.map(({ column }) => column);
    const natural = shown.map((each) => (Number.isFinite(width) ? each.width : Math.min(each.width, WIDEST)));
    const isLast = keep || chosen.every(({ drop }) => drop === undefined);
    const widths = shrunk(chosen, natural, width, isLast ? LEAST_CUT : READABLE);
    const excess = keep ? -1 : dispensable(shown, widths, width);
    if (excess < 0) {
      const body = rows.map((_, i) =>
        line(
          chosen,
          shown.map(({ values }) => values[i]!),
          widths,
          Number.isFinite(width),
        ),
      );
      return [heading(chosen, widths, theme), ...body];
    }
    shown.splice(excess, 1);
  }
}

/** {@link tableLines} of rows that come one by one; nothing is printed before the last is there. */
export async function* table(
  columns: readonly Column[],
  rows: RowSource,
  options?: TableOptions,
): AsyncGenerator<string> {
  const all: Row[] = [];
  for await (const row of rows) all.push(row);
  yield* tableLines(columns, all, options);
}

/** How a table of items is laid out. */
export interface RenderOptions extends TableOptions {
  /** With the columns that `kvmi` shows in its `wide` format only. */
  readonly wide?: boolean;
}

/** Items of an answer as the table that `kvmi` prints of them; empty when there are none. */
export function renderTable<T extends object>(
  columns: readonly ColumnOf<T>[],
  items: Iterable<T>,
  { wide = false, ...options }: RenderOptions = {},
): string {
  const shown = columns.filter((column) => wide || !column.wide);
  return tableLines(
    shown,
    Array.from(items, (item) => rowOf(shown, item)),
    options,
  ).join('\n');
}

const STREAM_WIDTHS: Readonly<Record<Column['kind'], number>> = {
  text: 20,
  decimal: 8,
  hex: 18,
  size: 10,
  bytes: 32,
  time: 15,
  date: 10,
  boolean: 3,
  list: 20,
  any: 20,
};

/** Rows under headings, each as soon as it is there: widths are what columns reserve. Nothing is cut. */
export async function* streamTable(
  columns: readonly Column[],
  rows: RowSource,
  theme: Theme = PLAIN,
): AsyncGenerator<string> {
  const widths = columns.map((column) =>
    Math.max(column.name.length, column.width ?? STREAM_WIDTHS[column.kind]),
  );
  yield heading(columns, widths, theme);
  for await (const row of rows) {
    const values = columns.map((column) => text(column, row));
    const grown = widths.map((width, i) => Math.max(width, displayWidth(values[i]!)));
    yield line(columns, values, grown);
  }
}

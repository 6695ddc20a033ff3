import { type Column, cellText, isRightAligned, type Row } from './columns.ts';
import { displayWidth, fitted, printable } from './printable.ts';
import type { Theme } from './theme.ts';

const GAP = '  ';
/** A column that may be cut keeps at least this many characters. */
const LEAST_CUT = 12;

function text(column: Column, row: Row): string {
  return printable(cellText(column.kind, row[column.name]));
}

function aligned(column: Column, value: string, width: number, last: boolean): string {
  const fill = ' '.repeat(Math.max(0, width - displayWidth(value)));
  if (isRightAligned(column.kind)) return fill + value;
  return last ? value : value + fill;
}

function line(columns: readonly Column[], values: readonly string[], widths: readonly number[]): string {
  const last = columns.length - 1;
  return columns
    .map((column, i) => aligned(column, fitted(values[i]!, widths[i]!), widths[i]!, i === last))
    .join(GAP)
    .trimEnd();
}

function heading(columns: readonly Column[], widths: readonly number[], theme: Theme): string {
  const titles = columns.map((column) => column.name.toUpperCase());
  return theme.bold(line(columns, titles, widths));
}

/** Takes what is too much from the widest columns that may be cut. */
function shrink(columns: readonly Column[], widths: number[], available: number): void {
  const total = () => widths.reduce((sum, width) => sum + width, 0) + GAP.length * (columns.length - 1);
  for (let excess = total() - available; excess > 0; excess = total() - available) {
    let widest = -1;
    for (const [i, column] of columns.entries()) {
      if (column.cut && widths[i]! > Math.max(LEAST_CUT, widths[widest] ?? 0)) widest = i;
    }
    if (widest < 0) return;
    widths[widest] = Math.max(LEAST_CUT, widths[widest]! - excess);
  }
}

/**
 * Rows under headings, as wide as their cells. With `width` columns that may be cut are, so that a line fits a
 * terminal of that width.
 */
export async function* table(
  columns: readonly Column[],
  rows: AsyncIterable<Row>,
  theme: Theme,
  width?: number,
): AsyncGenerator<string> {
  const cells: string[][] = [];
  for await (const row of rows) cells.push(columns.map((column) => text(column, row)));
  if (cells.length === 0) return;
  const widths = columns.map((column, i) =>
    cells.reduce((most, values) => Math.max(most, displayWidth(values[i]!)), column.name.length),
  );
  if (width !== undefined) shrink(columns, widths, width);
  yield heading(columns, widths, theme);
  for (const values of cells) yield line(columns, values, widths);
}

const STREAM_WIDTHS: Readonly<Record<Column['kind'], number>> = {
  text: 20,
  decimal: 8,
  hex: 18,
  size: 10,
  bytes: 32,
  time: 15,
  boolean: 3,
  list: 20,
  any: 20,
};

/** Rows under headings, each as soon as it is there: widths are what columns reserve. Nothing is cut. */
export async function* streamTable(
  columns: readonly Column[],
  rows: AsyncIterable<Row>,
  theme: Theme,
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

import { type Cell, type Column, type Kind, plainText, type RowSource } from './columns.ts';
import { printable } from './printable.ts';

function quoted(value: string): string {
  return /[",]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value;
}

/**
 * What spreadsheets take for the start of a formula, which can start programs: some of them also in full width, and after
 * a semicolon where that separates cells. A guest chooses what its processes are called.
 */
const FORMULA = /(^|;)(?=[=+\-@\uff1d\uff0b\uff0d\uff20])/gu;

function cellOf(kind: Kind, cell: Cell): string {
  const text = printable(plainText(kind, cell));
  const isText = typeof cell === 'string' || Array.isArray(cell);
  return quoted(isText ? text.replace(FORMULA, "$1'") : text);
}

/**
 * A line of names, then a line for each row (RFC 4180). Control characters are written as escapes; text that a spreadsheet
 * would take for a formula has an apostrophe in front.
 */
export async function* csv(columns: readonly Column[], rows: RowSource): AsyncGenerator<string> {
  yield columns.map((column) => quoted(column.name)).join(',');
  for await (const row of rows) {
    yield columns.map(({ name, kind }) => cellOf(kind, row[name])).join(',');
  }
}

import { type Cell, type Column, type Kind, plainText, type RowSource } from './columns.ts';
import { printable } from './printable.ts';

function quoted(value: string): string {
  return /[",]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value;
}

const TEXT: ReadonlySet<Kind> = new Set(['text', 'list', 'any']);
/** What spreadsheets take for a formula, which can start programs. A guest chooses what its processes are called. */
const FORMULA = /^[=+\-@]/;

function cellOf(kind: Kind, cell: Cell): string {
  const text = printable(plainText(kind, cell));
  const isFormula =
    TEXT.has(kind) && typeof cell !== 'number' && typeof cell !== 'bigint' && FORMULA.test(text);
  return quoted(isFormula ? `'${text}` : text);
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

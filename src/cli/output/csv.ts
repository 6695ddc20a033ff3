import { type Column, plainText, type Row } from './columns.ts';
import { printable } from './printable.ts';

function quoted(value: string): string {
  return /[",]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value;
}

/** A line of names, then a line for each row (RFC 4180). Control characters are written as escapes. */
export async function* csv(columns: readonly Column[], rows: AsyncIterable<Row>): AsyncGenerator<string> {
  yield columns.map((column) => quoted(column.name)).join(',');
  for await (const row of rows) {
    yield columns.map(({ name, kind }) => quoted(printable(plainText(kind, row[name])))).join(',');
  }
}

import { type Column, cellJson, type Row } from './columns.ts';
import { safeJson } from './printable.ts';

/** The version of the JSON that commands print. Fields may be added in it; none changes or goes. */
export const JSON_VERSION = 1;

function fields(columns: readonly Column[], row: Row): Record<string, unknown> {
  return Object.fromEntries(columns.map(({ name, kind }) => [name, cellJson(kind, row[name])]));
}

/**
 * One document: `{"v":1,"command":"list","rows":[…]}`, with `"partial":true` and `"reasons"` after the rows when
 * something is missing. Rows are written as they come.
 */
export async function* json(
  command: string,
  columns: readonly Column[],
  rows: AsyncIterable<Row>,
  reasons: readonly string[],
): AsyncGenerator<string> {
  let before = `{"v":${JSON_VERSION},"command":${safeJson(command)},"rows":[`;
  let count = 0;
  for await (const row of rows) {
    yield `${before}${safeJson(fields(columns, row))}`;
    before = ',';
    count++;
  }
  const end = reasons.length > 0 ? `],"partial":true,"reasons":${safeJson(reasons)}}` : ']}';
  yield count === 0 ? before + end : end;
}

/** One line of JSON for each row; a last line with `"partial":true` and `"reasons"` when something is missing. */
export async function* jsonLines(
  columns: readonly Column[],
  rows: AsyncIterable<Row>,
  reasons: readonly string[],
): AsyncGenerator<string> {
  for await (const row of rows) yield safeJson({ v: JSON_VERSION, ...fields(columns, row) });
  if (reasons.length > 0) yield safeJson({ v: JSON_VERSION, partial: true, reasons });
}

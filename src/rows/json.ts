import { type Column, cellJson, type Row, type RowSource } from './columns.ts';
import { safeJson } from './printable.ts';

/** The version of the JSON that commands print. Fields may be added in it; none changes or goes. */
export const JSON_VERSION = 1;

/** What goes with rows as JSON. */
export interface JsonOptions {
  /** Why rows are missing; looked at after the last row. */
  readonly reasons?: readonly string[];
}

function fields(columns: readonly Column[], row: Row): Record<string, unknown> {
  return Object.fromEntries(columns.map(({ name, kind }) => [name, cellJson(kind, row[name])]));
}

/**
 * Lines of one document: `{"v":1,"command":"list","rows":[…]}`, with `"partial":true` and `"reasons"` after the rows when
 * something is missing. Rows are written as they come.
 */
export async function* json(
  columns: readonly Column[],
  rows: RowSource,
  { command, reasons = [] }: JsonOptions & { readonly command?: string } = {},
): AsyncGenerator<string> {
  const named = command === undefined ? '' : `"command":${safeJson(command)},`;
  let before = `{"v":${JSON_VERSION},${named}"rows":[`;
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
  rows: RowSource,
  { reasons = [] }: JsonOptions = {},
): AsyncGenerator<string> {
  for await (const row of rows) yield safeJson({ v: JSON_VERSION, ...fields(columns, row) });
  if (reasons.length > 0) yield safeJson({ v: JSON_VERSION, partial: true, reasons });
}

import { UsageError } from '../error.ts';
import { didYouMean } from '../input/suggest.ts';
import { parseNumber } from '../input/values.ts';
import { type Cell, type Column, cellText, type Kind, plainText, type Row } from './columns.ts';
import { parseTime } from './time.ts';

/** Decides whether a row is shown. */
export type RowFilter = (row: Row) => boolean;

const FILTER = /^\s*([\w-]+)\s*(!=|!~|>=|<=|=|~|>|<)\s*(.*)$/s;

/** Whether `cell` is before (-1), at (0) or after (1) a wanted value; undefined when they cannot be compared. */
type Compare = (cell: Cell) => number | undefined;

const ORDERED: ReadonlySet<Kind> = new Set(['decimal', 'hex', 'size', 'time', 'date']);

const MEETS: Readonly<Record<string, (order: number) => boolean>> = {
  '=': (order) => order === 0,
  '!=': (order) => order !== 0,
  '>': (order) => order > 0,
  '>=': (order) => order >= 0,
  '<': (order) => order < 0,
  '<=': (order) => order <= 0,
};

/**
 * Parses `column=value`, `!=`, `column~regex`, `!~`, and `>`, `>=`, `<`, `<=` for numbers, sizes and times. A row
 * whose cell is empty passes the negative ones only.
 *
 * @throws UsageError.
 */
export function parseFilter(text: string, columns: readonly Column[]): RowFilter {
  const match = FILTER.exec(text);
  if (!match) {
    throw new UsageError(
      `--filter ${text}: a condition is expected`,
      "Write 'column=value', 'column~regex' or 'column>number'.",
    );
  }
  const [, name, operator, value] = match as unknown as [string, string, string, string];
  const column = columnNamed(name, columns);
  if (operator.endsWith('~')) return matching(column, value, operator === '~');
  const compare = comparing(column, value, operator);
  const meets = MEETS[operator]!;
  return (row) => {
    const order = compare(row[column.name]);
    return order === undefined ? operator === '!=' : meets(order);
  };
}

/** @throws UsageError that lists what there is. */
export function columnNamed(name: string, columns: readonly Column[]): Column {
  const found = columns.find((column) => column.name === name);
  if (found) return found;
  const names = columns.map((column) => column.name);
  throw new UsageError(
    `there is no column ${name}`,
    didYouMean(name, names) ?? `The columns are ${names.join(', ')}.`,
  );
}

function matching(column: Column, source: string, wanted: boolean): RowFilter {
  let pattern: RegExp;
  try {
    pattern = new RegExp(source, 'u');
  } catch (error) {
    throw new UsageError(`--filter ${column.name}~${source}: ${(error as Error).message}`);
  }
  return (row) => pattern.test(plainText(column.kind, row[column.name])) === wanted;
}

function comparing(column: Column, value: string, operator: string): Compare {
  if (!ORDERED.has(column.kind)) {
    if (operator !== '=' && operator !== '!=') {
      throw new UsageError(
        `--filter: column ${column.name} is no number`,
        'It can be compared with = != ~ !~.',
      );
    }
    return (cell) => (cell === undefined ? undefined : textIs(column.kind, cell, value) ? 0 : 1);
  }
  if (column.kind === 'time' || column.kind === 'date') return comparingTimes(column, value);
  const wanted = parseNumber(value);
  if (wanted === undefined) {
    throw new UsageError(`--filter: ${value || 'nothing'} is no number, and ${column.name} is one`);
  }
  return comparingNumbers(wanted);
}

function comparingTimes(column: Column, value: string): Compare {
  const wanted = parseTime(value);
  if (wanted === undefined) {
    throw new UsageError(
      `--filter: ${value} is no time, and ${column.name} is one`,
      'Write 2026-11-22T08:30:00Z.',
    );
  }
  return comparingNumbers(wanted);
}

function comparingNumbers(wanted: bigint): Compare {
  return (cell) => {
    if (typeof cell !== 'number' && typeof cell !== 'bigint') return undefined;
    return cell < wanted ? -1 : cell > wanted ? 1 : 0;
  };
}

/** What people see (`yes`) and what programs see (`true`) are both taken. */
function textIs(kind: Kind, cell: Cell, value: string): boolean {
  if (Array.isArray(cell)) return (cell as readonly string[]).includes(value);
  return plainText(kind, cell) === value || cellText(kind, cell) === value;
}

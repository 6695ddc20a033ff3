import { formatTime, shortDate, timeOfDay } from './time.ts';

export { now } from './time.ts';

/** What the cells of a column are, which decides how they are printed, compared and written as JSON. */
export type Kind =
  /** Text. Terminals get it through `printable`. */
  | 'text'
  /** A count or an id: a JSON number (a string beyond 2^53). */
  | 'decimal'
  /** An address or register: `0x…`, a JSON string. */
  | 'hex'
  /** A size: `256 MiB` for people, the number of bytes for programs. */
  | 'size'
  /** Bytes: hexadecimal digits. */
  | 'bytes'
  /** A point in time while something is watched, as nanoseconds since 1970: the time of day for people, else RFC 3339. */
  | 'time'
  /** A point in time of any day, as nanoseconds since 1970: `09:14` or `Nov26` for people, else RFC 3339. */
  | 'date'
  | 'boolean'
  /** Several texts: a JSON array. */
  | 'list'
  /** A text, a number or a truth value. */
  | 'any';

export type Cell = string | number | bigint | boolean | Uint8Array | readonly string[] | undefined;

/** A row by column names. A cell that is not known is left out. */
export type Row = Readonly<Record<string, Cell>>;

/** A named, typed column of a command's rows. */
export interface Column {
  readonly name: string;
  readonly kind: Kind;
  /** What is in it, for the documentation. */
  readonly about: string;
  /** Characters to reserve where rows are printed as they come. */
  readonly width?: number;
  /** Only in `-o wide`, `-c` and the formats for programs. */
  readonly wide?: boolean;
  /** What `-q` prints. */
  readonly key?: boolean;
  /** Foreign text may be cut to make the table fit the terminal. What people copy is not. */
  readonly cut?: boolean;
  /** Left out where the table does not fit the terminal whatever is cut; the highest goes first. */
  readonly drop?: number;
}

/** Rows that are there, or that come one by one. */
export type RowSource = Iterable<Row> | AsyncIterable<Row>;

/** A column, and where the cells of its items come from: their member of that name unless told. */
export type ColumnOf<T> = Column & {
  readonly cell?: (item: T) => Cell;
};

/** An item of an answer as a row. */
export function rowOf<T extends object>(columns: readonly ColumnOf<T>[], item: T): Row {
  const row: Record<string, Cell> = {};
  for (const { name, cell } of columns) row[name] = cell ? cell(item) : (item as Record<string, Cell>)[name];
  return row;
}

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];

/** `524288` as `512 KiB`: at most one decimal, none when it is exact. */
export function formatSize(bytes: number): string {
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${Number.isInteger(value) ? value : value.toFixed(1)} ${UNITS[unit]}`;
}

export function formatHex(value: number | bigint): string {
  return `0x${value.toString(16)}`;
}

/** A cell for people, not yet printable. */
export function cellText(kind: Kind, cell: Cell): string {
  if (cell === undefined) return '';
  if (kind === 'size') return formatSize(Number(cell));
  if (kind === 'hex' && (typeof cell === 'number' || typeof cell === 'bigint')) return formatHex(cell);
  if (kind === 'time' && typeof cell === 'bigint') return timeOfDay(cell);
  if (kind === 'date' && typeof cell === 'bigint') return shortDate(cell);
  if (typeof cell === 'boolean') return cell ? 'yes' : 'no';
  return plainText(kind, cell);
}

/** A cell for a program that takes text, such as CSV. */
export function plainText(kind: Kind, cell: Cell): string {
  const value = cellJson(kind, cell);
  return value === null ? '' : Array.isArray(value) ? value.join(',') : String(value);
}

/** A cell as JSON. */
export function cellJson(kind: Kind, cell: Cell): string | number | boolean | null | readonly string[] {
  if (cell === undefined) return null;
  if (cell instanceof Uint8Array) return Buffer.from(cell).toString('hex');
  if ((kind === 'time' || kind === 'date') && typeof cell === 'bigint') return formatTime(cell);
  if (kind === 'hex' && (typeof cell === 'number' || typeof cell === 'bigint')) return formatHex(cell);
  if (typeof cell === 'bigint') {
    return cell <= BigInt(Number.MAX_SAFE_INTEGER) && cell >= BigInt(Number.MIN_SAFE_INTEGER)
      ? Number(cell)
      : cell.toString();
  }
  return cell;
}

/** Numbers are aligned to the right. */
export function isRightAligned(kind: Kind): boolean {
  return kind === 'decimal' || kind === 'size';
}

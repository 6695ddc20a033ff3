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
  /** A point in time: RFC 3339. */
  | 'time'
  | 'boolean'
  /** Several texts: a JSON array. */
  | 'list'
  /** A text, a number or a truth value. */
  | 'any';

export type Cell = string | number | bigint | boolean | Uint8Array | Date | readonly string[] | undefined;

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
  /** Foreign text may be cut to make the table fit the terminal. */
  readonly cut?: boolean;
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

/** The time of day, local, with milliseconds. */
function timeOfDay(time: Date): string {
  const pad = (value: number, digits = 2) => String(value).padStart(digits, '0');
  const seconds = `${pad(time.getSeconds())}.${pad(time.getMilliseconds(), 3)}`;
  return `${pad(time.getHours())}:${pad(time.getMinutes())}:${seconds}`;
}

/** A cell for people, not yet printable. */
export function cellText(kind: Kind, cell: Cell): string {
  if (cell === undefined) return '';
  if (kind === 'size') return formatSize(Number(cell));
  if (kind === 'hex' && (typeof cell === 'number' || typeof cell === 'bigint')) return formatHex(cell);
  if (cell instanceof Date) return timeOfDay(cell);
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
  if (cell instanceof Date) return cell.toISOString();
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

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
  /** A point in time, as nanoseconds since 1970: RFC 3339. */
  | 'time'
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

const NS_PER_MS = 1_000_000n;

/** The present, to the microsecond, as a cell of kind `time`. */
export function now(): bigint {
  return BigInt(Math.round((performance.timeOrigin + performance.now()) * 1000)) * 1000n;
}

/** RFC 3339 in UTC with nanoseconds. */
export function formatTime(ns: bigint): string {
  const date = new Date(Number(ns / NS_PER_MS));
  return `${date.toISOString().slice(0, -1)}${String(ns % NS_PER_MS).padStart(6, '0')}Z`;
}

/** The time of day, local, with microseconds. */
function timeOfDay(ns: bigint): string {
  const date = new Date(Number(ns / NS_PER_MS));
  const pad = (value: number | bigint, digits = 2) => String(value).padStart(digits, '0');
  const fraction = pad((ns / 1000n) % 1_000_000n, 6);
  return `${pad(date.getHours())}:${pad(date.getMinutes())}:${pad(date.getSeconds())}.${fraction}`;
}

/** A cell for people, not yet printable. */
export function cellText(kind: Kind, cell: Cell): string {
  if (cell === undefined) return '';
  if (kind === 'size') return formatSize(Number(cell));
  if (kind === 'hex' && (typeof cell === 'number' || typeof cell === 'bigint')) return formatHex(cell);
  if (kind === 'time' && typeof cell === 'bigint') return timeOfDay(cell);
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
  if (kind === 'time' && typeof cell === 'bigint') return formatTime(cell);
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

import type { Awaitable } from '../awaitable.ts';
import { KvmiError, UsageError } from '../error.ts';
import type { Place } from '../input/values.ts';
import { GPA_LIMIT, PAGE_SIZE } from '../machine/index.ts';
import { formatHex } from '../rows/columns.ts';

/** Reads guest memory at an address, physical or virtual; false when some of it is not there. */
export type ReadMemory = (address: bigint, into: Uint8Array) => Awaitable<boolean>;

/** A piece of a range that was read; `bytes` is undefined where nothing is. */
export interface Piece {
  readonly address: bigint;
  readonly size: number;
  readonly bytes: Uint8Array | undefined;
}

const CHUNK = 64 * 1024;
const PAGE = BigInt(PAGE_SIZE);

/** Reads `size` bytes from `address` on, as pieces in order; a page that cannot be read is a piece without bytes. */
export async function* readRange(read: ReadMemory, address: bigint, size: number): AsyncGenerator<Piece> {
  for (let at = 0; at < size; at += CHUNK) {
    const start = address + BigInt(at);
    const bytes = new Uint8Array(Math.min(CHUNK, size - at));
    if (await read(start, bytes)) yield { address: start, size: bytes.length, bytes };
    else yield* readPages(read, start, bytes.length);
  }
}

async function* readPages(read: ReadMemory, address: bigint, size: number): AsyncGenerator<Piece> {
  for (let at = 0; at < size; ) {
    const start = address + BigInt(at);
    const length = Math.min(size - at, Number(PAGE - (start % PAGE)));
    const bytes = new Uint8Array(length);
    yield { address: start, size: length, bytes: (await read(start, bytes)) ? bytes : undefined };
    at += length;
  }
}

/** Says which parts are missing: one reason for each run of unreadable pages. Nothing readable at all is an error. */
export class Holes {
  readonly #what: string;
  #first: bigint | undefined;
  #next: bigint | undefined;
  #read = false;
  readonly #report: (reason: string) => void;

  constructor(what: string, report: (reason: string) => void) {
    this.#what = what;
    this.#report = report;
  }

  note(piece: Piece): void {
    if (piece.bytes) {
      this.#flush();
      this.#read = true;
      return;
    }
    this.#first ??= piece.address;
    this.#next = piece.address + BigInt(piece.size);
  }

  /** @throws KvmiError with code E_NOT_BACKED when nothing could be read. */
  end(): void {
    if (!this.#read && this.#first !== undefined) {
      throw new KvmiError('E_NOT_BACKED', `${this.#what} at ${this.#range()}`, {
        hint: '`kvmi info VM` shows the memory map; without --physical an address has to be mapped by the guest.',
      });
    }
    this.#flush();
  }

  #range(): string {
    return `${formatHex(this.#first!)}-${formatHex(this.#next! - 1n)}`;
  }

  #flush(): void {
    if (this.#first !== undefined) this.#report(`${this.#what} at ${this.#range()}`);
    this.#first = undefined;
  }
}

/** What is said about a place that is to be physical: it has no symbols. */
export function physicalAddress({ symbol, offset }: Place): bigint {
  if (symbol === undefined) return offset;
  throw new UsageError(`${symbol} is a symbol, and symbols are virtual`, 'Leave --physical out.');
}

/** Checks that a range ends where addresses end. */
export function checkRange(address: bigint, size: number, physical: boolean): void {
  const limit = physical ? BigInt(GPA_LIMIT) : 1n << 64n;
  if (address + BigInt(size) <= limit) return;
  throw new UsageError(
    `${size} bytes at ${formatHex(address)} go beyond the last ${physical ? 'physical' : 'virtual'} address`,
  );
}

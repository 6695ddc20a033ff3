import type { Row } from '../../rows/columns.ts';
import type { Theme } from '../../rows/theme.ts';

export const BYTES_PER_LINE = 16;

const HEX = Array.from({ length: 256 }, (_, byte) => byte.toString(16).padStart(2, '0'));

/** Bytes as characters: what is not printable ASCII is a dot. */
export function asciiOf(bytes: Uint8Array): string {
  let text = '';
  for (const byte of bytes) text += byte >= 0x20 && byte < 0x7f ? String.fromCharCode(byte) : '.';
  return text;
}

/** `bytes`, the first of which is at `address`, as rows of at most 16 that start at multiples of 16 after it. */
export function* hexRows(address: bigint, bytes: Uint8Array): Generator<Row> {
  for (let at = 0; at < bytes.length; at += BYTES_PER_LINE) {
    const part = bytes.subarray(at, at + BYTES_PER_LINE);
    yield { address: BigInt.asUintN(64, address + BigInt(at)), bytes: part, text: asciiOf(part) };
  }
}

/** One line as `hexdump -C` prints it, with 16 digits of address. */
export function hexLine(address: bigint, bytes: Uint8Array, theme: Theme): string {
  let hex = '';
  for (let i = 0; i < BYTES_PER_LINE; i++) {
    const byte = bytes[i];
    hex += `${i === BYTES_PER_LINE / 2 ? '  ' : ' '}${byte === undefined ? '  ' : HEX[byte]}`;
  }
  return `${theme.cyan(address.toString(16).padStart(16, '0'))} ${hex}  |${asciiOf(bytes)}|`;
}

/**
 * Rows of {@link hexRows} as `hexdump -C`: lines that equal the one before them are replaced by one `*`; the end's address
 * follows the last one.
 */
export async function* hexdump(rows: AsyncIterable<Row>, theme: Theme): AsyncGenerator<string> {
  let previous: Uint8Array | undefined;
  let end: bigint | undefined;
  let skipping = false;
  for await (const row of rows) {
    const address = row.address as bigint;
    const bytes = row.bytes as Uint8Array;
    const gap = end !== undefined && end !== address;
    const same = !gap && previous !== undefined && Buffer.compare(previous, bytes) === 0;
    if (!same) yield hexLine(address, bytes, theme);
    else if (!skipping) yield '*';
    skipping = same;
    previous = bytes;
    end = BigInt.asUintN(64, address + BigInt(bytes.length));
  }
  if (end !== undefined) yield theme.cyan(end.toString(16).padStart(16, '0'));
}

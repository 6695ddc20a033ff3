import { copyBack } from './lzo.ts';

/*
 * Snappy without frames, as QEMU's dump-guest-memory -s packs pages with it: the number of bytes, then elements that
 * are literals or copy what came before.
 */

const LITERAL = 0;
/** Literals of more bytes have their number in the 1 to 4 bytes that follow. */
const LONG_LITERAL = 60;

/** The `size` bytes that `packed` stands for; undefined when it is damaged or stands for another number. */
export function unpackSnappy(packed: Uint8Array, size: number): Uint8Array | undefined {
  const into = new Uint8Array(size);
  let used = 0;
  const start = varint(packed);
  if (start.value !== size) return undefined;
  let { at } = start;
  while (at < packed.length) {
    const tag = packed[at++]!;
    const kind = tag & 3;
    if (kind === LITERAL) {
      let length = (tag >> 2) + 1;
      if (length > LONG_LITERAL) {
        const bytes = length - LONG_LITERAL;
        length = little(packed, at, bytes) + 1;
        at += bytes;
      }
      if (length > packed.length - at || length > size - used) return undefined;
      into.set(packed.subarray(at, at + length), used);
      at += length;
      used += length;
      continue;
    }
    const bytes = kind === 3 ? 4 : kind;
    const short = kind === 1;
    const length = short ? ((tag >> 2) & 7) + 4 : (tag >> 2) + 1;
    const distance = little(packed, at, bytes) + (short ? (tag >> 5) << 8 : 0);
    at += bytes;
    if (!copyBack(into, used, distance, length)) return undefined;
    used += length;
  }
  return used === size ? into : undefined;
}

function varint(packed: Uint8Array): { value: number; at: number } {
  let value = 0;
  for (let at = 0; at < 5; at++) {
    const byte = packed[at] ?? 0;
    value += (byte & 0x7f) * 2 ** (7 * at);
    if (byte < 0x80) return { value, at: at + 1 };
  }
  return { value: -1, at: 5 };
}

/** Bytes that are not there are zeros: what needs them fails on its own. */
function little(packed: Uint8Array, at: number, bytes: number): number {
  let value = 0;
  for (let i = 0; i < bytes; i++) value += (packed[at + i] ?? 0) * 2 ** (8 * i);
  return value;
}

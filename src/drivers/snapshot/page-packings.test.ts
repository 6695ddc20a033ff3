import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { unpackLzo } from './lzo.ts';
import { unpackSnappy } from './snappy.ts';

/* Streams are made of instructions as the formats describe them; what they stand for is worked out apart from them. */

/** What a stream is to say: bytes, then a repetition of what came before. */
interface Step {
  readonly literals: readonly number[];
  /** From 0 to 1: how far back, of what there is. */
  readonly back: number;
  readonly length: number;
}

const steps = fc.array(
  fc.record({
    literals: fc.array(fc.nat(255), { minLength: 4, maxLength: 300 }),
    back: fc.double({ min: 0, max: 1, noNaN: true }),
    length: fc.integer({ min: 4, max: 600 }),
  }),
  { minLength: 1, maxLength: 30 },
);

function distanceOf({ back }: Step, used: number, most: number): number {
  return Math.max(1, Math.min(most, Math.ceil(back * used)));
}

function repeated(bytes: number[], distance: number, length: number): void {
  for (let i = 0; i < length; i++) bytes.push(bytes[bytes.length - distance]!);
}

/** LZO's lengths that do not fit their bits. */
function longLength(length: number, bits: number): number[] {
  if (length <= bits) return [];
  const rest = length - bits;
  const zeros = Math.floor((rest - 1) / 255);
  return [...Array<number>(zeros).fill(0), rest - 255 * zeros];
}

/** Literals as a run of their own, then a match of the kind for long distances, or for those below 16 KiB. */
function lzo(program: readonly Step[]): { packed: number[]; bytes: number[] } {
  const packed: number[] = [];
  const bytes: number[] = [];
  for (const step of program) {
    const { literals, length } = step;
    const run = literals.length - 3;
    packed.push(run <= 15 ? run : 0, ...longLength(run, 15), ...literals);
    bytes.push(...literals);
    const distance = distanceOf(step, bytes.length, 49_000);
    if (distance <= 16_384) {
      const more = length - 2;
      const word = (distance - 1) << 2;
      packed.push(32 | (more <= 31 ? more : 0), ...longLength(more, 31), word & 255, word >> 8);
    } else {
      const more = length - 2;
      const from = distance - 16_384;
      const word = (from & 16_383) << 2;
      packed.push(
        16 | ((from >> 14) << 3) | (more <= 7 ? more : 0),
        ...longLength(more, 7),
        word & 255,
        word >> 8,
      );
    }
    repeated(bytes, distance, length);
  }
  packed.push(0x11, 0, 0);
  return { packed, bytes };
}

function snappy(program: readonly Step[]): { packed: number[]; bytes: number[] } {
  const packed: number[] = [];
  const bytes: number[] = [];
  for (const step of program) {
    const { literals } = step;
    const count = literals.length - 1;
    packed.push(...(count < 60 ? [count << 2] : [61 << 2, count & 255, count >> 8]), ...literals);
    bytes.push(...literals);
    const distance = distanceOf(step, bytes.length, 65_535);
    const length = Math.min(64, step.length);
    if (length <= 11 && distance < 2048)
      packed.push(1 | ((length - 4) << 2) | ((distance >> 8) << 5), distance & 255);
    else packed.push(2 | ((length - 1) << 2), distance & 255, distance >> 8);
    repeated(bytes, distance, length);
  }
  const size: number[] = [];
  let left = bytes.length;
  for (; left > 127; left >>= 7) size.push((left & 127) | 128);
  return { packed: [...size, left, ...packed], bytes };
}

const FORMATS = [
  { name: 'LZO', unpack: unpackLzo, pack: lzo },
  { name: 'Snappy', unpack: unpackSnappy, pack: snappy },
] as const;

for (const { name, unpack, pack } of FORMATS) {
  describe(name, () => {
    test('what a stream says is unpacked', () => {
      fc.assert(
        fc.property(steps, (program) => {
          const { packed, bytes } = pack(program);
          assert.deepEqual(unpack(Uint8Array.from(packed), bytes.length), Uint8Array.from(bytes));
          assert.equal(unpack(Uint8Array.from(packed), bytes.length - 1), undefined, 'more than is wanted');
          assert.equal(unpack(Uint8Array.from(packed), bytes.length + 1), undefined, 'less than is wanted');
        }),
      );
    });

    test('whatever a damaged stream says, it is a page or nothing', () => {
      const change = fc.tuple(fc.nat(), fc.nat(255));
      fc.assert(
        fc.property(
          steps,
          fc.array(change, { minLength: 1, maxLength: 6 }),
          fc.nat(),
          (program, changes, cut) => {
            const { packed } = pack(program);
            for (const [at, byte] of changes) packed[at % packed.length] = byte;
            const page = unpack(Uint8Array.from(packed.slice(0, 1 + (cut % packed.length))), 4096);
            assert.ok(page === undefined || page.length === 4096);
          },
        ),
      );
      fc.assert(
        fc.property(fc.uint8Array({ maxLength: 200 }), (packed) => {
          const page = unpack(packed, 4096);
          assert.ok(page === undefined || page.length === 4096);
        }),
      );
    });
  });
}

test('LZO: short matches, and literals that belong to the instruction before', () => {
  // 21 literals at the start; a match of 3 at distance 1 with one literal; one of 2 at distance 4; a far one; the end.
  const first = Array.from({ length: 21 }, (_, i) => i + 1);
  const packed = [17 + 21, ...first, 64 | 1, 0, 77, 0b1100, 0, 0x11, 0, 0];
  const bytes = [...first, 21, 21, 21, 77, 21, 21];
  assert.deepEqual(unpackLzo(Uint8Array.from(packed), bytes.length), Uint8Array.from(bytes));
  // After a run: 3 bytes from 2049 before.
  const run = Array.from({ length: 2049 }, (_, i) => i & 255);
  const far = [0, ...longLength(2046, 15), ...run, 0, 0, 0x11, 0, 0];
  assert.deepEqual(unpackLzo(Uint8Array.from(far), 2052), Uint8Array.from([...run, 0, 1, 2]));
  // The two kinds of short matches, by their longest ones: 8 at distance 2, 4 at distance 2.
  const short = [17 + 4, 1, 2, 3, 4, 0b1110_0100, 0, 0b0110_0100, 0, 0x11, 0, 0];
  const pairs = [1, 2, 3, 4, 3, 4, 3, 4, 3, 4, 3, 4, 3, 4, 3, 4];
  assert.deepEqual(unpackLzo(Uint8Array.from(short), 16), Uint8Array.from(pairs));
});

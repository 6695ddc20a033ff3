import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { cpuTime } from '../../../test/kit/cpu-time.ts';
import { flattened } from '../../../test/kit/kdump-file.ts';
import type { Source } from './file.ts';
import { Flattened } from './flattened.ts';
import { latestPieces, type Piece } from './latest-pieces.ts';

function sourceOf(bytes: Uint8Array): Source {
  return {
    size: bytes.length,
    read(offset, into) {
      if (offset < 0 || offset + into.length > bytes.length) return false;
      into.set(bytes.subarray(offset, offset + into.length));
      return true;
    },
  };
}

const range = fc
  .tuple(fc.nat(400), fc.integer({ min: 1, max: 120 }))
  .map(([start, size]) => [start, start + size] as const);

test('pieces are as if they had been written one after the other', () => {
  fc.assert(
    fc.property(
      fc.array(range, { minLength: 1, maxLength: 30 }),
      fc.nat(519),
      fc.nat(519),
      (ranges, a, b) => {
        const size = Math.max(...ranges.map(([, end]) => end));
        const written = new Uint8Array(size);
        // Each piece is of another version of the file, so that the order can be seen.
        const parts = ranges.map(([start, end], i) => {
          written.fill(i + 1, start, end);
          const whole = flattened(Buffer.alloc(size, i + 1), [[start, end]]);
          return whole.subarray(4096, whole.length - 16);
        });
        const whole = flattened(Buffer.alloc(0), []);
        const file = Buffer.concat([whole.subarray(0, 4096), ...parts, whole.subarray(4096)]);
        const source = new Flattened(sourceOf(file));
        assert.equal(source.size, size);
        const [start, end] = [Math.min(a, b) % size, Math.max(a, b) % size].sort((x, y) => x - y) as [
          number,
          number,
        ];
        const into = new Uint8Array(end - start);
        assert.ok(source.read(start, into));
        assert.deepEqual(into, written.subarray(start, end));
      },
    ),
  );
});

test('a hundred thousand pieces that all overlap are sorted out soon', () => {
  const count = 100_000;
  const pieces: Piece[] = Array.from({ length: count }, (_, i) => ({
    start: i,
    size: count,
    offset: (i * 7919) % count,
  }));
  const start = cpuTime();
  const result = latestPieces(pieces);
  assert.ok(cpuTime() - start < 10_000);
  assert.ok(result.length <= 2 * count);
});

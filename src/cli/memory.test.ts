import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { checkRange, Holes, readRange } from './memory.ts';

/** Memory whose bytes are the low byte of their address, with pages missing. */
function memory(missing: ReadonlySet<number>) {
  return (address: bigint, into: Uint8Array): boolean => {
    const start = Number(address);
    for (let i = 0; i < into.length; i++) {
      if (missing.has(Math.floor((start + i) / 4096))) return false;
      into[i] = (start + i) & 0xff;
    }
    return true;
  };
}

test('every byte is read once, in order; missing pages are pieces without bytes', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.integer({ min: 0, max: 20_000 }),
      fc.integer({ min: 1, max: 200_000 }),
      fc.uniqueArray(fc.integer({ min: 0, max: 60 }), { maxLength: 8 }),
      async (start, size, pages) => {
        const missing = new Set(pages);
        let at = start;
        for await (const piece of readRange(memory(missing), BigInt(start), size)) {
          assert.equal(Number(piece.address), at);
          assert.equal(
            piece.bytes === undefined,
            missing.has(Math.floor(at / 4096)) && piece.bytes === undefined,
          );
          piece.bytes?.forEach((byte, i) => {
            if (byte !== ((at + i) & 0xff)) assert.fail(`byte at ${at + i}`);
          });
          if (!piece.bytes) assert.ok(missing.has(Math.floor(at / 4096)));
          at += piece.size;
        }
        assert.equal(at, start + size);
      },
    ),
    { numRuns: 30 },
  );
});

test('each run of missing pages is one reason', () => {
  const reasons: string[] = [];
  const holes = new Holes('no memory', (reason) => reasons.push(reason));
  const bytes = new Uint8Array(4096);
  const piece = (page: number, there: boolean) => ({
    address: BigInt(page * 4096),
    size: 4096,
    bytes: there ? bytes : undefined,
  });
  for (const [page, there] of [
    [0, true],
    [1, false],
    [2, false],
    [3, true],
    [4, false],
  ] as const) {
    holes.note(piece(page, there));
  }
  holes.end();
  assert.deepEqual(reasons, ['no memory at 0x1000-0x2fff', 'no memory at 0x4000-0x4fff']);
});

test('nothing at all is an error', () => {
  const holes = new Holes('no memory', () => {});
  holes.note({ address: 0x1000n, size: 16, bytes: undefined });
  assert.throws(() => holes.end(), { code: 'E_NOT_BACKED', message: /0x1000-0x100f/ });
});

test('ranges end where addresses end', () => {
  checkRange(2n ** 64n - 16n, 16, false);
  assert.throws(() => checkRange(2n ** 64n - 16n, 17, false), { code: 'E_USAGE' });
  assert.throws(() => checkRange(2n ** 52n - 1n, 2, true), { code: 'E_USAGE' });
});

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { Row } from '../../rows/columns.ts';
import { PLAIN } from '../../rows/theme.ts';
import { hexdump, hexRows } from './hexdump.ts';

async function* each(rows: Iterable<Row>): AsyncGenerator<Row> {
  yield* rows;
}

async function dump(address: bigint, bytes: Uint8Array): Promise<string[]> {
  const lines: string[] = [];
  for await (const line of hexdump(each(hexRows(address, bytes)), PLAIN)) lines.push(line);
  return lines;
}

/** What a reader of the dump takes from it. */
function undump(lines: readonly string[]): Uint8Array {
  const bytes: number[] = [];
  let start: number | undefined;
  let last: number[] = [];
  for (const line of lines) {
    if (line === '*') continue;
    const address = Number(`0x${line.slice(0, 16)}`);
    start ??= address;
    while (bytes.length < address - start) bytes.push(...last);
    const hex = line.slice(18, 66).trim();
    last = hex === '' ? [] : hex.split(/\s+/).map((digits) => Number.parseInt(digits, 16));
    bytes.push(...last);
  }
  return Uint8Array.from(bytes);
}

test('a line is address, bytes and characters', async () => {
  const lines = await dump(0x1000n, new TextEncoder().encode('Hello, kvmi!\0\x1b\x7fz!'));
  assert.deepEqual(lines, [
    '0000000000001000  48 65 6c 6c 6f 2c 20 6b  76 6d 69 21 00 1b 7f 7a  |Hello, kvmi!...z|',
    '0000000000001010  21                                                |!|',
    '0000000000001011',
  ]);
});

test('equal lines are shortened to one asterisk', async () => {
  const lines = await dump(0n, new Uint8Array(64));
  assert.deepEqual(
    lines.map((line) => line.slice(0, 20)),
    ['0000000000000000  00', '*', '0000000000000040'],
  );
});

test('a gap in the addresses is no repetition', async () => {
  const rows = [...hexRows(0n, new Uint8Array(16)), ...hexRows(0x1000n, new Uint8Array(16))];
  const lines: string[] = [];
  for await (const line of hexdump(each(rows), PLAIN)) lines.push(line);
  assert.equal(lines.length, 3);
  assert.match(lines[1]!, /^0000000000001000 /);
});

test('a dump tells the bytes', async () => {
  const bytes = fc.oneof(fc.uint8Array({ maxLength: 200 }), fc.uint8Array({ maxLength: 200, max: 1 }));
  await fc.assert(
    fc.asyncProperty(bytes, fc.integer({ min: 0, max: 2 ** 40 }), async (content, address) => {
      assert.deepEqual(undump(await dump(BigInt(address), content)), content);
    }),
  );
});

test('the last addresses do not overflow', async () => {
  const lines = await dump(2n ** 64n - 16n, new Uint8Array(16));
  assert.match(lines[0]!, /^fffffffffffffff0/);
  assert.equal(lines[1], '0000000000000000');
});

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { parseHex } from '../../test/wire/vector.ts';
import {
  cookieHash,
  cookieMatches,
  encodeAnswer,
  encodeHello,
  HandshakeError,
  type HandshakeHello,
  HandshakeReader,
} from './index.ts';

const uuid = parseHex('00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f');
const name = 'mail-0';

test('bytes of the first variant', () => {
  const expected = parseHex(`60 00 00 00 | 00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f | 00 00 00 00
    | 39 30 00 00 00 00 00 00 | 6d 61 69 6c 2d 30 ${'00'.repeat(58)}`);
  assert.deepEqual(encodeHello({ uuid, name, startTime: 12345 }), expected);
  assert.equal(expected.length, 96);
});

test('bytes of the second variant: processor type and the memory map, sorted', () => {
  const memoryMap = [
    { address: 0x1_0000_0000, length: 0x4000_0000, type: 1 },
    { address: 0, length: 0x9fc00, type: 2 },
  ];
  const expected = parseHex(`98 00 00 00 | 00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f | 01 00 00 00
    | ff ff ff ff ff ff ff ff | 6d 61 69 6c 2d 30 ${'00'.repeat(58)} | 02 00 00 00 00 00 00 00
    | 00 00 00 00 00 00 00 00 00 fc 09 00 00 00 00 00 02 00 00 00 00 00 00 00
    | 00 00 00 00 01 00 00 00 00 00 00 40 00 00 00 00 01 00 00 00 00 00 00 00`);
  assert.equal(expected.length, 104 + 2 * 24);
  assert.deepEqual(encodeHello({ uuid, name, startTime: -1, memoryMap }), expected);
});

test("bytes of the tool's answer: SHA-1 of the secret, or zeros", () => {
  assert.deepEqual(encodeAnswer(), parseHex(`18 00 00 00 ${'00'.repeat(20)}`));
  const hash = 'a9993e364706816aba3e25717850c26c9cd0d89d';
  assert.deepEqual(encodeAnswer(cookieHash(Buffer.from('abc'))), parseHex(`18 00 00 00 ${hash}`));
});

/** Feeds `bytes` in pieces; the result is how many were taken. */
function feed(reader: HandshakeReader, bytes: Uint8Array, cuts: readonly number[]): number {
  const places = [0, ...[...cuts].sort((a, b) => a - b), bytes.length];
  let taken = 0;
  for (let i = 1; i < places.length; i++) {
    const piece = bytes.slice(places[i - 1], places[i]);
    const now = reader.push(piece);
    taken += now;
    if (now < piece.length) return taken;
  }
  return taken;
}

const entry = fc.record(
  { address: fc.maxSafeNat(), length: fc.maxSafeNat(), type: fc.nat(5) },
  { noNullPrototype: true },
);
const hello: fc.Arbitrary<HandshakeHello> = fc
  .record({
    uuid: fc.uint8Array({ minLength: 16, maxLength: 16 }),
    name: fc.string({ maxLength: 63 }).filter((text) => !text.includes('\0')),
    startTime: fc.maxSafeInteger(),
    entries: fc.option(fc.array(entry, { maxLength: 255 }), { nil: undefined }),
  })
  .map(({ entries, ...rest }) => ({
    ...rest,
    ...(entries && { memoryMap: entries.sort((a, b) => a.address - b.address) }),
  }));

test('what a device manager says is read back, in any split, and not a byte more is taken', () => {
  fc.assert(
    fc.property(
      hello,
      fc.array(fc.nat(), { maxLength: 20 }),
      fc.uint8Array({ maxLength: 9 }),
      (said, cuts, more) => {
        const structure = encodeHello(said);
        const bytes = Uint8Array.from([...structure, ...more]);
        const reader = HandshakeReader.hello();
        const places = cuts.map((cut) => cut % (bytes.length + 1));
        assert.equal(feed(reader, bytes, places), structure.length);
        assert.equal(reader.complete, true);
        assert.deepEqual(reader.readHello(), said);
      },
    ),
    { numRuns: 200 },
  );
});

test("a tool's answer is read back, in any split, with GET_VERSION right behind it", () => {
  const hash = cookieHash(Buffer.from('secret'));
  const bytes = Uint8Array.from([...encodeAnswer(hash), 2, 0, 0, 0, 1, 0, 0, 0]);
  for (let cut = 0; cut <= bytes.length; cut++) {
    const reader = HandshakeReader.answer();
    assert.equal(feed(reader, bytes, [cut]), 24);
    assert.deepEqual(reader.readCookieHash(), hash);
  }
});

test('a larger structure than is known is read to its end', () => {
  const bytes = new Uint8Array(40);
  bytes.set(encodeAnswer(cookieHash(Buffer.from('x'))));
  bytes[0] = 40;
  const reader = HandshakeReader.answer();
  assert.equal(reader.push(bytes), 40);
  assert.deepEqual(reader.readCookieHash(), cookieHash(Buffer.from('x')));
});

test('a smaller structure than the first variant is accepted as far as it goes', () => {
  const bytes = encodeHello({ uuid, name: 'abc', startTime: 7 }).slice(0, 34);
  bytes[0] = 34;
  const reader = HandshakeReader.hello();
  reader.push(bytes);
  assert.deepEqual(reader.readHello(), { uuid, name: 'ab', startTime: 7 });
});

test('an incomplete structure is not complete', () => {
  const bytes = encodeHello({ uuid, name, startTime: 0 });
  for (let size = 0; size < bytes.length; size++) {
    const reader = HandshakeReader.hello();
    reader.push(bytes.slice(0, size));
    assert.equal(reader.complete, false, `${size} bytes`);
  }
});

const sizes: readonly [size: number, hello: boolean, answer: boolean][] = [
  [0, false, false],
  [4, false, false],
  [23, false, false],
  [24, false, true],
  [31, false, true],
  [32, true, true],
  [96, true, true],
  [65536, true, false],
  [65537, false, false],
  [0x7fffffff, false, false],
  [0xffffffff, false, false],
];

for (const [size, helloFits, answerFits] of sizes) {
  test(`a structure of ${size} bytes is ${helloFits ? 'a hello' : 'no hello'}, ${answerFits ? 'an answer' : 'no answer'}`, () => {
    const header = new Uint8Array(4);
    new DataView(header.buffer).setUint32(0, size, true);
    for (const [reader, fits] of [
      [HandshakeReader.hello(), helloFits],
      [HandshakeReader.answer(), answerFits],
    ] as const) {
      if (fits) assert.equal(reader.push(header), 4);
      else assert.throws(() => reader.push(header), HandshakeError);
    }
  });
}

test('a memory map that claims more entries than it has is read as far as it goes', () => {
  const bytes = encodeHello({ uuid, name, startTime: 0, memoryMap: [{ address: 1, length: 2, type: 3 }] });
  bytes[96] = 255;
  const reader = HandshakeReader.hello();
  reader.push(bytes);
  assert.deepEqual(reader.readHello().memoryMap, [{ address: 1, length: 2, type: 3 }]);
});

test('a name without an end, or that is no UTF-8, is still text', () => {
  const bytes = encodeHello({ uuid, name: '', startTime: 0 });
  bytes.fill(0x41, 32, 96);
  const reader = HandshakeReader.hello();
  reader.push(bytes);
  assert.equal(reader.readHello().name, 'A'.repeat(63));
  const long = encodeHello({ uuid, name: 'é'.repeat(40), startTime: 0 });
  assert.equal(long[95], 0, 'the last byte stays NUL');
  const second = HandshakeReader.hello();
  second.push(long);
  assert.match(second.readHello().name, /^é{31}/);
});

test('a cookie matches its own hash and no other, of any length', () => {
  const secret = Buffer.from('secret');
  assert.equal(cookieMatches(cookieHash(secret), secret), true);
  assert.equal(cookieMatches(cookieHash(Buffer.from('other')), secret), false);
  assert.equal(cookieMatches(new Uint8Array(0), secret), false);
  assert.equal(cookieMatches(cookieHash(secret).subarray(0, 19), secret), false);
});

test('cookies are compared in constant time', () => {
  // Timing cannot be measured reliably here: what the function is made of can be looked at.
  assert.match(cookieMatches.toString(), /timingSafeEqual/);
});

test('random bytes are a structure, an incomplete one, or a HandshakeError', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 300 }), fc.boolean(), (bytes, small) => {
      if (small && bytes.length >= 4) bytes.fill(0, 1, 4);
      for (const reader of [HandshakeReader.hello(), HandshakeReader.answer()]) {
        try {
          reader.push(bytes);
          if (reader.complete) reader.readHello();
        } catch (error) {
          assert.ok(error instanceof HandshakeError, String(error));
        }
      }
    }),
    { numRuns: 2000 },
  );
});

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import fc from 'fast-check';
import { FrameDecoder, HEADER_SIZE, MAX_PAYLOAD, ProtocolError, putHeader } from './index.ts';

interface Frame {
  readonly id: number;
  readonly seq: number;
  readonly payload: Uint8Array;
}

function encode(frames: readonly Frame[]): Uint8Array {
  const total = frames.reduce((sum, { payload }) => sum + HEADER_SIZE + payload.length, 0);
  const bytes = new Uint8Array(total);
  let at = 0;
  for (const { id, seq, payload } of frames) {
    putHeader(bytes, at, id, payload.length, seq);
    bytes.set(payload, at + HEADER_SIZE);
    at += HEADER_SIZE + payload.length;
  }
  return bytes;
}

/** Cuts `bytes` at `cuts` and feeds the pieces, each in memory of its own that is overwritten afterwards or not. */
function decodeInPieces(bytes: Uint8Array, cuts: readonly number[]): Frame[] {
  const frames: Frame[] = [];
  const decoder = new FrameDecoder((id, seq, payload) => {
    frames.push({ id, seq, payload });
    return true;
  });
  const places = [0, ...[...cuts].sort((a, b) => a - b), bytes.length];
  for (let i = 1; i < places.length; i++) {
    const piece = bytes.slice(places[i - 1], places[i]);
    assert.equal(decoder.push(piece), piece.length);
  }
  assert.equal(decoder.pending, 0);
  return frames;
}

const frame = fc.record(
  {
    id: fc.nat(0xffff),
    seq: fc.integer({ min: 0, max: 0xffffffff }),
    payload: fc.oneof(
      fc.uint8Array({ maxLength: 40 }),
      fc.constantFrom(0, 1, 544, MAX_PAYLOAD).map((size) => new Uint8Array(size).fill(size)),
    ),
  },
  { noNullPrototype: true },
);

test('any split of a stream gives the same messages, and they may be kept', () => {
  fc.assert(
    fc.property(fc.array(frame, { maxLength: 12 }), fc.array(fc.nat(), { maxLength: 40 }), (frames, cuts) => {
      const bytes = encode(frames);
      const places = cuts.map((cut) => cut % (bytes.length + 1));
      assert.deepEqual(decodeInPieces(bytes, places), frames);
    }),
    { numRuns: 300 },
  );
});

test('byte by byte gives the same messages', () => {
  const frames = [0, 1, 7, 8, 9, 300].map((size, i) => ({
    id: i,
    seq: i * 1000,
    payload: new Uint8Array(size).fill(i),
  }));
  const bytes = encode(frames);
  const everywhere = Array.from({ length: bytes.length }, (_, i) => i);
  assert.deepEqual(decodeInPieces(bytes, everywhere), frames);
});

test('a message that is cut at any byte is not handed on', () => {
  const bytes = encode([{ id: 1, seq: 2, payload: new Uint8Array(40) }]);
  for (let size = 0; size < bytes.length; size++) {
    const decoder = new FrameDecoder(() => assert.fail(`${size} bytes were taken for a message`));
    decoder.push(bytes.slice(0, size));
    assert.equal(decoder.pending, size);
  }
});

test('a handler that asks to wait gets the rest when it is pushed again', () => {
  fc.assert(
    fc.property(fc.array(frame, { minLength: 1, maxLength: 8 }), fc.nat(), (frames, cut) => {
      const bytes = encode(frames);
      const seen: Frame[] = [];
      const decoder = new FrameDecoder((id, seq, payload) => {
        seen.push({ id, seq, payload });
        return false;
      });
      const place = cut % (bytes.length + 1);
      for (let rest of [bytes.slice(0, place), bytes.slice(place)]) {
        while (rest.length > 0) {
          const before = seen.length;
          const taken = decoder.push(rest);
          assert.ok(taken > 0 && seen.length - before <= 1, 'one message a push');
          rest = rest.subarray(taken);
        }
      }
      assert.deepEqual(seen, frames);
    }),
    { numRuns: 200 },
  );
});

test('a header that announces too much is refused, whole or in pieces', () => {
  for (const size of [MAX_PAYLOAD + 1, 0xffff]) {
    const header = new Uint8Array(HEADER_SIZE);
    putHeader(header, 0, 7, size, 1);
    assert.throws(() => new FrameDecoder(() => true).push(header), ProtocolError);
    for (let cut = 1; cut < HEADER_SIZE; cut++) {
      const decoder = new FrameDecoder(() => true);
      decoder.push(header.slice(0, cut));
      assert.throws(() => decoder.push(header.slice(cut)), ProtocolError);
    }
  }
});

test('100,000 random chunks are messages or a ProtocolError, and leave no memory behind', () => {
  setFlagsFromString('--expose-gc');
  const gc = runInNewContext('gc') as () => void;
  const takeAll = (): boolean => true;
  let decoder = new FrameDecoder(takeAll);
  let state = 1;
  const random = (): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state;
  };
  const churn = (count: number): void => {
    for (let i = 0; i < count; i++) {
      const chunk = new Uint8Array(random() % 64);
      for (let at = 0; at < chunk.length; at++) chunk[at] = random() >>> 24;
      try {
        decoder.push(chunk);
        assert.ok(decoder.pending <= HEADER_SIZE + MAX_PAYLOAD);
      } catch (error) {
        assert.ok(error instanceof ProtocolError, String(error));
        decoder = new FrameDecoder(takeAll);
      }
    }
  };
  churn(10_000);
  gc();
  const before = process.memoryUsage();
  churn(100_000);
  gc();
  const after = process.memoryUsage();
  const growth = after.heapUsed + after.arrayBuffers - before.heapUsed - before.arrayBuffers;
  assert.ok(growth < 1 << 20, `${growth} bytes more than before`);
});

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { loopback } from './loopback.ts';
import { PrefixedChannel } from './prefixed.ts';

test('a handler that pauses while the first bytes are delivered gets nothing more until it resumes', () => {
  const [inner, peer] = loopback();
  inner.pause();
  const channel = new PrefixedChannel(inner, [Uint8Array.of(1), Uint8Array.of(2)]);
  const got: number[] = [];
  channel.open({
    data(bytes) {
      got.push(...bytes);
      channel.pause();
    },
    close() {},
  });
  peer.write(Uint8Array.of(3));
  assert.deepEqual(got, [], 'it starts paused');
  channel.resume();
  assert.deepEqual(got, [1]);
  peer.write(Uint8Array.of(4));
  assert.deepEqual(got, [1], 'still paused');
  channel.resume();
  assert.deepEqual(got, [1, 2]);
  channel.resume();
  assert.deepEqual(got, [1, 2, 3]);
  channel.resume();
  assert.deepEqual(got, [1, 2, 3, 4]);
});

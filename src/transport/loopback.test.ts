import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import fc from 'fast-check';
import type { Channel } from './channel.ts';
import { loopback } from './loopback.ts';

function bytes(...values: number[]): Uint8Array {
  return Uint8Array.from(values);
}

/** Opens `channel` and notes what it delivers. */
function record(channel: Channel, log: string[], name = '') {
  channel.open({
    data: (chunk) => log.push(`${name}${[...chunk].join(' ')}`),
    close: (error) => log.push(error ? `${name}error` : `${name}close`),
  });
}

test('delivers before write returns', () => {
  const [a, b] = loopback();
  const log: string[] = [];
  record(b, log);
  a.write(bytes(1, 2));
  assert.deepEqual(log, ['1 2']);
  assert.equal(a.backlog, 0);
});

test('what is written before the other end is open waits, and counts as backlog', () => {
  const [a, b] = loopback();
  const log: string[] = [];
  a.write(bytes(1));
  a.write(bytes(2, 3));
  assert.equal(a.backlog, 3);
  record(b, log);
  assert.deepEqual(log, ['1', '2 3']);
  assert.equal(a.backlog, 0);
});

test('a pause holds everything back, also one from inside a delivery', () => {
  const [a, b] = loopback();
  const log: number[] = [];
  b.open({
    data(chunk) {
      log.push(chunk[0]!);
      b.pause();
    },
    close() {},
  });
  for (const value of [1, 2, 3]) a.write(bytes(value));
  assert.deepEqual(log, [1]);
  b.resume();
  assert.deepEqual(log, [1, 2]);
  assert.equal(a.backlog, 1);
});

test('drain tells when a backlog is gone, and only then', () => {
  const [a, b] = loopback();
  const log: string[] = [];
  a.open({ data() {}, close() {}, drain: () => log.push(`drain ${a.backlog}`) });
  a.write(bytes(1, 2));
  a.write(bytes(3));
  b.pause();
  record(b, log);
  assert.deepEqual(log, []);
  b.resume();
  assert.deepEqual(log, ['1 2', '3', 'drain 0']);
  a.write(bytes(4));
  assert.deepEqual(log.slice(3), ['4'], 'nothing had waited');
});

test('two ends that answer each other for ever-growing counts do not recurse', () => {
  const [a, b] = loopback();
  let depth = 0;
  let deepest = 0;
  let count = 0;
  const answer = (other: Channel) => ({
    data(chunk: Uint8Array) {
      deepest = Math.max(deepest, ++depth);
      if (++count < 200_000) other.write(chunk);
      depth--;
    },
    close() {},
  });
  a.open(answer(a));
  b.open(answer(b));
  a.write(bytes(1));
  assert.equal(count, 200_000);
  assert.ok(deepest <= 3, `deliveries nested ${deepest} deep`);
});

test('writes from inside a delivery keep their order, in any pattern', () => {
  fc.assert(
    fc.property(fc.array(fc.array(fc.nat({ max: 3 }), { maxLength: 4 }), { maxLength: 30 }), (plan) => {
      const [a, b] = loopback();
      const sent: number[] = [];
      const received: number[] = [];
      let next = 0;
      const send = () => {
        sent.push(next & 255);
        a.write(bytes(next++ & 255));
      };
      b.open({
        data(chunk) {
          received.push(chunk[0]!);
          for (const times of plan[received.length] ?? []) for (let i = 0; i < times; i++) send();
        },
        close() {},
      });
      send();
      assert.deepEqual(received, sent);
    }),
  );
});

test('a shutdown reaches both ends once, after what was written, and not from inside the call', async () => {
  const [a, b] = loopback();
  const log: string[] = [];
  record(a, log, 'a ');
  a.write(bytes(1));
  b.write(bytes(2));
  a.shutdown();
  a.shutdown();
  a.write(bytes(3));
  b.write(bytes(4));
  record(b, log, 'b ');
  assert.deepEqual(log, ['a 2', 'b 1']);
  await turn();
  b.shutdown();
  await turn();
  assert.deepEqual(log.slice(2).sort(), ['a close', 'b close']);
});

test('the end that shuts down gets nothing more, even what was already waiting', async () => {
  const [a, b] = loopback();
  const log: string[] = [];
  record(a, log);
  a.pause();
  b.write(bytes(1));
  a.shutdown();
  a.resume();
  await turn();
  assert.deepEqual(log, ['close']);
});

test('a shutdown in the middle of a delivery drops the rest of it', async () => {
  const [a, b] = loopback();
  const log: string[] = [];
  for (const value of [1, 2, 3]) a.write(bytes(value));
  b.open({
    data(chunk) {
      log.push(String(chunk[0]));
      b.shutdown();
    },
    close: () => log.push('close'),
  });
  await turn();
  assert.deepEqual(log, ['1', 'close']);
});

test('an exception in a handler reaches the writer and leaves the channel usable', () => {
  const [a, b] = loopback();
  const log: number[] = [];
  b.open({
    data(chunk) {
      log.push(chunk[0]!);
      if (chunk[0] === 1) throw new Error('handler');
    },
    close() {},
  });
  assert.throws(() => a.write(bytes(1)), /handler/);
  a.write(bytes(2));
  assert.deepEqual(log, [1, 2]);
});

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type Awaitable, isPending, repeat } from './awaitable.ts';

/** Counts to `end`; every step for which `later` is true answers with a promise. */
function counter(end: number, later: (n: number) => boolean): () => Awaitable<number | undefined> {
  let n = 0;
  return () => {
    n++;
    const value = n === end ? n : undefined;
    return later(n) ? Promise.resolve(value) : value;
  };
}

test('repeat is synchronous while every step is', () => {
  assert.equal(repeat(counter(1000, () => false)), 1000);
});

test('repeat goes on after a pending step, in whatever mixture', async () => {
  for (const later of [() => true, (n: number) => n % 3 === 0, (n: number) => n === 1000]) {
    const result = repeat(counter(1000, later));
    assert.ok(isPending(result));
    assert.equal(await result, 1000);
  }
});

test('a falsy value ends the repetition', () => {
  assert.equal(
    repeat(() => false),
    false,
  );
  assert.equal(
    repeat(() => 0),
    0,
  );
});

test('what a later step throws rejects the result', async () => {
  let n = 0;
  const result = repeat<number>(() => {
    if (n++ > 0) throw new Error('second step');
    return Promise.resolve(undefined);
  });
  await assert.rejects(Promise.resolve(result), /second step/);
});

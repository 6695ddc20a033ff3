import assert from 'node:assert/strict';
import { getEventListeners } from 'node:events';
import { test } from 'node:test';
import { pause, unlessAborted } from './interruption.ts';

test('waiting leaves nothing on the signal, however often and however it ends', async () => {
  const { signal } = new AbortController();
  for (let i = 0; i < 20; i++) {
    assert.equal(await unlessAborted(Promise.resolve(i), signal), i);
    await assert.rejects(unlessAborted(Promise.reject(new Error('refused')), signal), /refused/);
    await pause(0, signal);
  }
  assert.equal(getEventListeners(signal, 'abort').length, 0);
});

test('an abortion ends the wait, before and while it lasts', async () => {
  const controller = new AbortController();
  const never = new Promise<number>(() => {});
  const waiting = unlessAborted(never, controller.signal);
  controller.abort();
  assert.equal(await waiting, undefined);
  assert.equal(await unlessAborted(never, controller.signal), undefined);
});

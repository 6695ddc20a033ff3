import assert from 'node:assert/strict';
import { getEventListeners } from 'node:events';
import { afterEach, beforeEach, describe, mock, test } from 'node:test';
import { EXIT } from './exit-codes.ts';
import { Interruption, pause, unlessAborted } from './interruption.ts';

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

describe('signals to a command', () => {
  let interruption: Interruption;
  let told: string[];
  let exits: unknown[];
  let now: number;

  /** `after` ms after the signal before it. */
  function signal(name: 'SIGINT' | 'SIGTERM', after = 1000): void {
    now += after;
    process.emit(name, name);
  }

  beforeEach(() => {
    now = 0;
    mock.method(performance, 'now', () => now);
    [told, exits] = [[], []];
    mock.method(process, 'exit', (code: unknown) => {
      exits.push(code);
    });
    interruption = new Interruption();
    interruption.onInsistence = (undoing) => told.push(...undoing);
  });
  afterEach(() => {
    interruption.dispose();
    mock.restoreAll();
  });

  test('the first one tells it to end, the second one what is being undone, the third one ends it', () => {
    interruption.undoing('letting go of web');
    signal('SIGINT');
    assert.equal(interruption.reason, 'SIGINT');
    signal('SIGTERM');
    assert.deepEqual([told, exits], [['letting go of web'], []]);
    signal('SIGTERM');
    assert.deepEqual(exits, [EXIT.terminated.code]);
  });

  test('the second one ends it when nothing is to be undone', () => {
    interruption.undoing('letting go of web')();
    signal('SIGINT');
    signal('SIGINT');
    assert.deepEqual([told, exits], [[], [EXIT.interrupted.code]]);
  });

  test('one that comes twice at once counts once', () => {
    interruption.undoing('letting go of web');
    signal('SIGTERM');
    signal('SIGTERM', 5);
    assert.deepEqual([told, exits], [[], []]);
    signal('SIGINT', 5);
    assert.deepEqual(told, ['letting go of web'], 'another one is another wish');
  });
});

import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, mock, test } from 'node:test';
import { EXIT } from './exit-codes.ts';
import { Interruption } from './interruption.ts';

describe('signals to a command', () => {
  let interruption: Interruption;
  let told: string[];
  let exits: unknown[];

  beforeEach(() => {
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
    process.emit('SIGINT', 'SIGINT');
    assert.equal(interruption.reason, 'SIGINT');
    process.emit('SIGTERM', 'SIGTERM');
    assert.deepEqual([told, exits], [['letting go of web'], []]);
    process.emit('SIGTERM', 'SIGTERM');
    assert.deepEqual(exits, [EXIT.terminated.code]);
  });

  test('the second one ends it when nothing is to be undone', () => {
    interruption.undoing('letting go of web')();
    process.emit('SIGINT', 'SIGINT');
    process.emit('SIGINT', 'SIGINT');
    assert.deepEqual([told, exits], [[], [EXIT.interrupted.code]]);
  });
});

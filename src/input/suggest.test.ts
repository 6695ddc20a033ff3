import assert from 'node:assert/strict';
import { test } from 'node:test';
import { didYouMean, suggestions } from './suggest.ts';

const NAMES = ['list', 'doctor', 'info', 'regs', 'read', 'write', 'break', 'hook'];

test('typing mistakes are recognised', () => {
  assert.deepEqual(suggestions('rges', NAMES), ['regs']);
  assert.equal(suggestions('lsit', NAMES)[0], 'list');
  assert.equal(suggestions('hok', NAMES)[0], 'hook');
  assert.equal(suggestions('doctr', NAMES)[0], 'doctor');
});

test('nothing is suggested for what is not close', () => {
  assert.deepEqual(suggestions('zzzzzz', NAMES), []);
  assert.deepEqual(suggestions('', NAMES), []);
  assert.equal(didYouMean('x'.repeat(100_000), NAMES), undefined);
});

test('a part of a name is enough', () => {
  assert.equal(didYouMean('pause', ['VM_PAUSE_VCPU', 'VM_GET_INFO']), 'Did you mean VM_PAUSE_VCPU?');
});

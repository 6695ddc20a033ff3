import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseStopReply, threadId } from './stop-reply.ts';

test('stop replies say who and why', () => {
  assert.deepEqual(parseStopReply('T05thread:p01.02;'), { signal: 5, vcpu: 1, watchpoint: false });
  assert.deepEqual(parseStopReply('T05thread:p1.1;watch:ffff;'), { signal: 5, vcpu: 0, watchpoint: true });
  assert.deepEqual(parseStopReply('S02'), { signal: 2, vcpu: undefined, watchpoint: false });
  for (const other of ['OK', '', 'W00', 'T', 'E01', 'Tzz']) assert.equal(parseStopReply(other), undefined);
  assert.equal(threadId(15), 'p1.10');
});

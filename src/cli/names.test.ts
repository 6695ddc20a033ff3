import assert from 'node:assert/strict';
import { test } from 'node:test';
import { commandNames, eventNames } from './names.ts';

test('permissions are listed by names and by ids of the dialect', () => {
  assert.deepEqual(eventNames('BREAKPOINT,pause', 'v12'), ['BREAKPOINT', 'PAUSE']);
  assert.deepEqual(commandNames('VM_READ_PHYSICAL, vcpu-get-registers', 'v12'), [
    'VM_READ_PHYSICAL',
    'VCPU_GET_REGISTERS',
  ]);
  assert.deepEqual(eventNames('5', 'v12'), eventNames('0x5', 'v12'));
});

test('all and none', () => {
  assert.equal(commandNames('all', 'v12'), undefined);
  assert.deepEqual(eventNames('none', 'v12'), []);
});

test('what the dialect does not have is refused with a suggestion', () => {
  assert.throws(() => eventNames('BREAKPIONT', 'v12'), { code: 'E_USAGE', hint: 'Did you mean BREAKPOINT?' });
  assert.throws(() => eventNames('999', 'v12'), { code: 'E_USAGE' });
  assert.throws(() => commandNames('VCPU_SET_EPT_VIEW', 'v12'), { code: 'E_USAGE' });
});

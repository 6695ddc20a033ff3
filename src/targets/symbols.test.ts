import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SyntheticLinux } from '../../test/kit/synthetic-linux.ts';
import type { Machine } from '../machine/index.ts';
import { symbolsOf } from './symbols.ts';

test('a symbol that a command was given and that is mistyped is suggested', async () => {
  const addressOf = symbolsOf({ memory: new SyntheticLinux().memory, vcpus: [] } as unknown as Machine);
  assert.ok((await addressOf('init_task')) > 0n);
  await assert.rejects(addressOf('init_tsk'), { code: 'E_SYMBOL', hint: /^Did you mean init_task/ });
  await assert.rejects(addressOf('zzzzzz'), { code: 'E_SYMBOL', hint: /CONFIG_KALLSYMS_ALL/ });
});

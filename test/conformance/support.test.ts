import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createEmbeddedMachine } from '../../src/drivers/embedded/index.ts';
import type { Capabilities } from '../../src/machine/index.ts';
import { Support } from './support.ts';

test('the page tells what works, what is refused, and what nobody has shown apart', async () => {
  const machine = createEmbeddedMachine();
  const capabilities: Capabilities = { ...machine.capabilities, msr: 'there is no filter' };
  const support = new Support('a driver');
  support.machine({ capabilities });
  support.saw('v9', 'CR');
  const row = (name: string) => support.section().match(new RegExp(`^\\| ${name} \\|.*$`, 'm'))?.[0];
  assert.equal(row('CR'), '| CR | not shown | works | not shown |  |');
  assert.equal(row('MSR'), '| MSR | no | no | no | there is no filter |');
  assert.equal(row('CPUID'), '| CPUID | not shown | – | – |  |');
  await machine.close();
});

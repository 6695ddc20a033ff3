import assert from 'node:assert/strict';
import { test } from 'node:test';
import { chooseMachine } from './choose.ts';
import type { FoundMachine } from './found.ts';

function vm(pid: number, name: string, uuid?: string): FoundMachine {
  const rest = {
    vcpus: 1,
    memory: 1,
    vmm: 'QEMU',
    accelerator: 'tcg',
    target: `qemu:/run/${pid}`,
    reason: undefined,
  };
  return { pid, name, uuid, ...rest };
}

const WEB = vm(10, 'web', '8f3c2f0e-0000-0000-0000-00000000000a');
const DB = vm(11, 'db');
const OTHER_DB = vm(12, 'db');

test('a VM is found by name, pid and UUID', () => {
  const all = [WEB, DB, OTHER_DB];
  assert.equal(chooseMachine('web', all), WEB);
  assert.equal(chooseMachine('11', all), DB);
  assert.equal(chooseMachine('8F3C2F0E-0000-0000-0000-00000000000A', all), WEB);
});

test('without a name, or with -, the only one is meant', () => {
  assert.equal(chooseMachine(undefined, [WEB]), WEB);
  assert.equal(chooseMachine('-', [WEB]), WEB);
});

test('several that fit are listed', () => {
  assert.throws(() => chooseMachine('db', [WEB, DB, OTHER_DB]), {
    code: 'E_AMBIGUOUS_VM',
    message: /11 \(db\), 12 \(db\)/,
    hint: /11 or 12/,
  });
  assert.throws(() => chooseMachine(undefined, [WEB, DB]), { code: 'E_AMBIGUOUS_VM' });
});

test('what does not exist gets a suggestion', () => {
  assert.throws(() => chooseMachine('wbe', [WEB, DB]), { code: 'E_NO_VM', hint: 'Did you mean web?' });
  assert.throws(() => chooseMachine(undefined, []), { code: 'E_NO_VM', message: /no VM was found/ });
  assert.throws(() => chooseMachine('qmeu:/run/x', [WEB]), { code: 'E_NO_VM' });
});

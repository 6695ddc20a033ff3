import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { FoundVm } from './discover.ts';
import { chooseVm } from './targets.ts';

function vm(pid: number, name: string, uuid?: string): FoundVm {
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
  assert.equal(chooseVm('web', all), WEB);
  assert.equal(chooseVm('11', all), DB);
  assert.equal(chooseVm('8F3C2F0E-0000-0000-0000-00000000000A', all), WEB);
});

test('without a name, or with -, the only one is meant', () => {
  assert.equal(chooseVm(undefined, [WEB]), WEB);
  assert.equal(chooseVm('-', [WEB]), WEB);
});

test('several that fit are listed', () => {
  assert.throws(() => chooseVm('db', [WEB, DB, OTHER_DB]), {
    code: 'E_AMBIGUOUS_VM',
    message: /11 \(db\), 12 \(db\)/,
    hint: /11 or 12/,
  });
  assert.throws(() => chooseVm(undefined, [WEB, DB]), { code: 'E_AMBIGUOUS_VM' });
});

test('what does not exist gets a suggestion', () => {
  assert.throws(() => chooseVm('wbe', [WEB, DB]), { code: 'E_NO_VM', hint: 'Did you mean web?' });
  assert.throws(() => chooseVm(undefined, []), { code: 'E_NO_VM', message: /no VM was found/ });
  assert.throws(() => chooseVm('qmeu:/run/x', [WEB]), { code: 'E_NO_VM' });
});

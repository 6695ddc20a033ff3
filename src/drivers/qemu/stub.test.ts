import assert from 'node:assert/strict';
import { test } from 'node:test';
import { KvmiError } from '../../error.ts';
import type { ErrorCode } from '../../error-codes.ts';
import type { QmpConnection } from './qmp.ts';
import { closeStub } from './stub.ts';

/** A monitor that fails with `code`, or does what it is asked to. */
function monitor(code?: ErrorCode): QmpConnection {
  return {
    where: 'here',
    execute: async () => ({}),
    hmp: async () => {
      if (code) throw new KvmiError(code, 'as the test wants it');
      return '';
    },
    isServer: () => true,
    onEvent: () => () => {},
    onClosed() {},
    close() {},
  };
}

test('a stub that may be left is told from one that is gone', async () => {
  const address = { path: '/nowhere' };
  assert.equal(await closeStub(monitor(), { address, own: true }), true);
  assert.equal(await closeStub(monitor('E_QMP_CLOSED'), { address, own: true }), true, 'QEMU has ended');
  assert.equal(await closeStub(monitor('E_QMP_TIMEOUT'), { address, own: true }), false);
  assert.equal(await closeStub(monitor('E_LIBVIRT'), { address, own: true }), false);
  assert.equal(await closeStub(monitor('E_LIBVIRT'), { address, own: false }), true, 'it is not ours');
});

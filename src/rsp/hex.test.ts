import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { hex, registerFromHex, registerToHex, unhex } from './hex.ts';

test('digits', () => {
  assert.equal(hex(Uint8Array.of(0, 255)), '00ff');
  assert.deepEqual([...(unhex('00fF') ?? [])], [0, 255]);
  assert.equal(unhex('0'), undefined);
  assert.equal(unhex('0g'), undefined);
});

test('register values are little-endian, of the size of the register', () => {
  assert.equal(registerToHex(0x1234n, 4), '34120000');
  fc.assert(
    fc.property(fc.bigInt({ min: 0n, max: 2n ** 128n - 1n }), (value) => {
      assert.equal(registerFromHex(registerToHex(value, 16)), value);
    }),
  );
  for (const wrong of ['', 'xxxxxxxx', '123', 'E01']) {
    assert.throws(() => registerFromHex(wrong), { code: 'E_GDB_PROTOCOL' });
  }
});

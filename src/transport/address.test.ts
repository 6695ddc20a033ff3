import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { KvmiError } from '../error.ts';
import { type Address, formatAddress, parseAddress } from './address.ts';

const good: readonly [string, Address][] = [
  ['unix:/run/tool.sock', { kind: 'unix', path: '/run/tool.sock' }],
  ['unix:tool.sock', { kind: 'unix', path: 'tool.sock' }],
  ['unix:/odd:name', { kind: 'unix', path: '/odd:name' }],
  ['tcp:localhost:0', { kind: 'tcp', host: 'localhost', port: 0 }],
  ['tcp:127.0.0.1:65535', { kind: 'tcp', host: '127.0.0.1', port: 65535 }],
  ['tcp:[::1]:4321', { kind: 'tcp', host: '::1', port: 4321 }],
  ['vsock:2:4321', { kind: 'vsock', cid: 2, port: 4321 }],
];

for (const [text, address] of good) {
  test(`parses ${text}`, () => {
    assert.deepEqual(parseAddress(text), address);
    assert.equal(formatAddress(address), text);
  });
}

const bad: readonly [string, RegExp, RegExp][] = [
  ['', /neither/, /unix:/],
  ['/run/tool.sock', /does not start with unix:/, /unix:\/run\/tool\.sock/],
  ['http://host', /does not start/, /./],
  ['unix:', /empty/, /./],
  ['unix:/a\0b', /NUL/, /./],
  ['tcp:host', /HOST:PORT/, /./],
  ['tcp:host:port', /HOST:PORT/, /./],
  ['tcp:::1:80', /HOST:PORT/, /./],
  ['tcp:host:65536', /above 65535/, /./],
  ['tcp:[host]:1', /not an IPv6/, /./],
  ['vsock:host:1', /CID:PORT/, /./],
  ['vsock:4294967296:1', /CID 4294967296/, /./],
  ['4321', /neither/, /tcp:/],
];

for (const [text, why, hint] of bad) {
  test(`refuses ${JSON.stringify(text)} and says why`, () => {
    assert.throws(
      () => parseAddress(text),
      (error: unknown) =>
        error instanceof KvmiError &&
        error.code === 'E_ADDRESS' &&
        why.test(error.message) &&
        hint.test(error.hint ?? ''),
    );
  });
}

test('never throws anything but E_ADDRESS, and formats back what it parsed', () => {
  fc.assert(
    fc.property(
      fc.oneof(
        fc.string(),
        fc.tuple(fc.constantFrom('unix:', 'tcp:', 'vsock:'), fc.string()).map((parts) => parts.join('')),
      ),
      (text) => {
        try {
          const address = parseAddress(text);
          assert.deepEqual(parseAddress(formatAddress(address)), address);
        } catch (error) {
          assert.ok(error instanceof KvmiError && error.code === 'E_ADDRESS');
        }
      },
    ),
  );
});

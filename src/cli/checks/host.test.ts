import assert from 'node:assert/strict';
import { test } from 'node:test';
import { nodeFinding, traceFinding } from './host.ts';

const PTRACE = 1n << 19n;

test('an old Node.js is an error', () => {
  assert.equal(nodeFinding('20.19.0').severity, 'ok');
  assert.equal(nodeFinding('22.1.0').severity, 'ok');
  assert.equal(nodeFinding('20.18.3').severity, 'error');
  assert.equal(nodeFinding('18.20.0').severity, 'error');
});

test('who may trace what', () => {
  const severity = (uid: number, capabilities: bigint, yama?: number) =>
    traceFinding({ uid, capabilities, yama }).severity;
  assert.equal(severity(0, PTRACE, 1), 'ok');
  assert.equal(severity(0, PTRACE), 'ok');
  assert.equal(severity(1000, PTRACE, 2), 'ok');
  assert.equal(severity(1000, 0n, 0), 'info');
  assert.equal(severity(1000, 0n, 1), 'warning');
  assert.equal(severity(0, 0n, 1), 'warning', 'root in a container has not all capabilities');
  assert.equal(severity(0, PTRACE, 3), 'warning');
});

test('whatever is missing has a remedy', () => {
  for (const yama of [0, 1, 2, 3]) {
    assert.ok(traceFinding({ uid: 1000, capabilities: 0n, yama }).remedy, `ptrace_scope ${yama}`);
  }
});

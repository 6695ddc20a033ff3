import assert from 'node:assert/strict';
import { test } from 'node:test';
import { KvmiError, UsageError } from '../error.ts';
import { CapabilityError } from '../machine/index.ts';
import { PLAIN } from '../rows/theme.ts';
import { HandshakeError } from '../wire/index.ts';
import { errorJson, errorText, exitCodeOf } from './errors.ts';
import { EXIT } from './exit-codes.ts';

const FILE = { verbose: false, width: undefined };

test('an error for people: what, its code, and the next step', () => {
  const error = new KvmiError('E_NO_VM', 'no VM is called web', { hint: 'kvmi list' });
  assert.equal(errorText(error, PLAIN, FILE), 'kvmi: error: no VM is called web [E_NO_VM]\nhint: kvmi list');
});

test('foreign text in an error does not reach the terminal as it is', () => {
  const error = new KvmiError('E_HOOK', 'cannot hook \x1b]0;pwned\x07', { hint: '\u202eevil' });
  assert.equal(
    errorText(error, PLAIN, FILE),
    'kvmi: error: cannot hook \\x1b]0;pwned\\x07 [E_HOOK]\nhint: \\u202eevil',
  );
});

test('an error for programs', () => {
  const error = new KvmiError('E_NOT_MAPPED', 'not mapped', { data: { gva: 0xffff800000000000n, vcpu: 1 } });
  assert.deepEqual(JSON.parse(errorJson(error)), {
    v: 1,
    level: 'error',
    code: 'E_NOT_MAPPED',
    message: 'not mapped',
    data: { gva: '0xffff800000000000', vcpu: 1 },
    exit: 1,
  });
});

test('the code decides how the command ends', () => {
  assert.equal(exitCodeOf(new UsageError('x')), EXIT.usage.code);
  assert.equal(exitCodeOf(new CapabilityError('pause', 'no')), EXIT.unsupported.code);
  assert.equal(exitCodeOf(new HandshakeError('no')), EXIT.peer.code);
  assert.equal(exitCodeOf(new KvmiError('E_AMBIGUOUS_VM', '')), EXIT.noSuchVm.code);
  assert.equal(exitCodeOf(new KvmiError('E_NEEDS_ALLOW', '')), EXIT.permission.code);
  assert.equal(exitCodeOf(new KvmiError('E_TIMEOUT', '')), EXIT.timeout.code);
  assert.equal(exitCodeOf(Object.assign(new Error('x'), { code: 'EACCES' })), EXIT.permission.code);
  assert.equal(exitCodeOf(new Error('x')), EXIT.error.code);
});

test('a failure to hook ends as its cause would, and so does one for lack of rights', () => {
  const cause = new CapabilityError('breakpoint', 'no');
  assert.equal(exitCodeOf(new KvmiError('E_HOOK', '', { cause })), EXIT.unsupported.code);
  const denied = Object.assign(new Error('x'), { code: 'EACCES' });
  assert.equal(exitCodeOf(new KvmiError('E_CONNECT', '', { cause: denied })), EXIT.permission.code);
});

test('exit codes are distinct', () => {
  const codes = Object.values(EXIT).map(({ code }) => code);
  assert.equal(new Set(codes).size, codes.length);
});

test('an error is one line in a file, and fits a terminal', () => {
  const words = 'the VM is held by somebody else who does not let it go '.repeat(3).trim();
  const error = new KvmiError('E_BUSY', words, { hint: words });
  assert.equal(errorText(error, PLAIN, FILE).split('\n').length, 2);
  const text = errorText(error, PLAIN, { verbose: false, width: 60 });
  for (const line of text.split('\n')) assert.ok(line.length <= 60, line);
  assert.equal(
    text.replace(/\n {2}/g, ' '),
    `kvmi: error: ${words} [E_BUSY]\nhint: ${words}`,
    'no word is lost',
  );
});

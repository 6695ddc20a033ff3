import assert from 'node:assert/strict';
import { test } from 'node:test';
import { formatUuid, HookLog, SILENT, vmLabel } from './log.ts';

const uuid = Uint8Array.from({ length: 16 }, (_, i) => i * 17);

test('a UUID is printed in byte order, lower-case, with dashes', () => {
  assert.equal(formatUuid(uuid), '00112233-4455-6677-8899-aabbccddeeff');
});

test('each line starts with the name of the VM, and its UUID where it has one', () => {
  const lines: string[] = [];
  const add = (message: string) => lines.push(message);
  const log = new HookLog({ info: add, warn: add, error: add }, vmLabel('web\n1', uuid));
  log.warn('one');
  log.error('two');
  log.info('Hooking VM');
  assert.deepEqual(lines, [
    'web 1 (00112233-4455-6677-8899-aabbccddeeff): one',
    'web 1 (00112233-4455-6677-8899-aabbccddeeff): two',
    'web 1 (00112233-4455-6677-8899-aabbccddeeff): Hooking VM',
  ]);
  assert.equal(vmLabel('web', new Uint8Array(16)), 'web');
});

test('what comes up again and again is reported once, and only so many different things are', () => {
  let lines = 0;
  const log = new HookLog({ ...SILENT, error: () => lines++ }, 'web');
  for (let i = 0; i < 10; i++) log.errorOnce('the same');
  assert.equal(lines, 1);
  for (let i = 0; i < 10_000; i++) log.errorOnce(`number ${i}`);
  assert.ok(lines <= 256, `${lines} lines`);
});

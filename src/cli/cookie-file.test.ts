import assert from 'node:assert/strict';
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { readCookieFile } from './cookie-file.ts';

const directory = mkdtempSync(join(tmpdir(), 'kvmi-cookie-'));
after(() => rmSync(directory, { recursive: true }));

function file(content: string, mode = 0o600): string {
  const path = join(directory, 'cookie');
  writeFileSync(path, content);
  chmodSync(path, mode);
  return path;
}

test('the secret is what is in the file, but for one line end', () => {
  assert.deepEqual(readCookieFile(file('secret\n')), new TextEncoder().encode('secret'));
  assert.deepEqual(readCookieFile(file('secret')), new TextEncoder().encode('secret'));
  assert.deepEqual(readCookieFile(file('\xff\x00\n\n')), new Uint8Array(Buffer.from('\xff\x00\n')));
});

for (const mode of [0o640, 0o604, 0o620, 0o666, 0o644]) {
  test(`a file with permissions ${mode.toString(8)} is refused`, () => {
    assert.throws(() => readCookieFile(file('secret', mode)), {
      code: 'E_COOKIE_FILE',
      message: /too open/,
      hint: /chmod 600/,
    });
  });
}

test('a file that is missing, empty or huge is refused', () => {
  assert.throws(() => readCookieFile(join(directory, 'none')), { code: 'E_COOKIE_FILE' });
  assert.throws(() => readCookieFile(file('\n')), { code: 'E_COOKIE_FILE' });
  assert.throws(() => readCookieFile(file('x'.repeat(5000))), { code: 'E_COOKIE_FILE' });
});

import assert from 'node:assert/strict';
import { chmodSync, chownSync, lstatSync, mkdirSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { runtimeDirectory } from './runtime-directory.ts';

/** Nobody's, so that there are others whose doing has to be seen through. */
const USER = 65534;
const skip = process.getuid?.() === 0 ? false : 'only root can become another user';

describe('the directory for sockets of this user', { skip }, () => {
  const fallback = `/tmp/kvmi-${USER}`;
  let session: string;

  beforeEach(() => {
    session = mkdtempSync('/tmp/kvmi-session-');
    chownSync(session, USER, USER);
    process.env.XDG_RUNTIME_DIR = session;
  });
  afterEach(() => {
    delete process.env.XDG_RUNTIME_DIR;
    rmSync(session, { recursive: true });
    rmSync(fallback, { recursive: true, force: true });
  });

  function asUser(): string | undefined {
    process.seteuid!(USER);
    try {
      return runtimeDirectory();
    } finally {
      process.seteuid!(0);
    }
  }

  test('is made for nobody else', () => {
    assert.equal(asUser(), join(session, 'kvmi'));
    const { mode, uid } = lstatSync(join(session, 'kvmi'));
    assert.deepEqual([mode & 0o777, uid], [0o700, USER]);
    assert.equal(asUser(), join(session, 'kvmi'), 'and used again');
  });

  test('is not one that others can enter, own or have linked', () => {
    const path = join(session, 'kvmi');
    mkdirSync(path, { mode: 0o755 });
    chownSync(path, USER, USER);
    assert.equal(asUser(), undefined, 'mode 0755');
    chmodSync(path, 0o700);
    assert.equal(asUser(), path);
    chownSync(path, 0, 0);
    assert.equal(asUser(), undefined, "root's");
    rmSync(path, { recursive: true });
    symlinkSync(session, path);
    assert.equal(asUser(), undefined, 'a link');
  });

  test("is not in another user's session", () => {
    chownSync(session, 0, 0);
    assert.equal(asUser(), fallback);
    rmSync(fallback, { recursive: true });
    mkdirSync(fallback, { mode: 0o700 });
    assert.equal(asUser(), undefined, 'planted before');
  });

  test('of root does not depend on a session', () => {
    assert.equal(runtimeDirectory(), '/run/kvmi');
  });
});

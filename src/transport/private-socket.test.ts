import assert from 'node:assert/strict';
import { chmodSync, chownSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { isPrivateSocket } from './private-socket.ts';

const isRoot = process.geteuid?.() === 0;

/** Sets up a socket in a directory, and says whether it is private. */
async function seen(directoryMode: number, socketMode: number, change?: (path: string) => void) {
  const top = mkdtempSync(join(tmpdir(), 'kvmi-private-'));
  const directory = join(top, 'd');
  const path = join(directory, 's');
  mkdirSync(directory);
  const server = createServer();
  try {
    await new Promise<void>((resolve) => server.listen(path, resolve));
    chmodSync(top, 0o755);
    chmodSync(directory, directoryMode);
    chmodSync(path, socketMode);
    change?.(path);
    return isPrivateSocket(path);
  } finally {
    server.close();
    rmSync(top, { recursive: true, force: true });
  }
}

test('a socket that only its owner can connect to is private', async () => {
  assert.equal(await seen(0o755, 0o600), true);
  assert.equal(await seen(0o755, 0o755), true, 'to connect is to write');
});

test('so is one in a directory that only its owner can enter', async () => {
  assert.equal(await seen(0o700, 0o777), true);
});

test('others can connect, or put their own in its place', async () => {
  assert.equal(await seen(0o755, 0o666), false, 'the socket is open');
  assert.equal(await seen(0o777, 0o600), false, 'the directory is');
  assert.equal(await seen(0o1777, 0o600), true, 'in a sticky directory it cannot be replaced');
});

test('what is no socket, or not there, is not private', async () => {
  const directory = mkdtempSync(join(tmpdir(), 'kvmi-private-'));
  writeFileSync(join(directory, 'file'), '');
  assert.equal(isPrivateSocket(join(directory, 'file')), false);
  assert.equal(isPrivateSocket(join(directory, 'none')), false);
  rmSync(directory, { recursive: true });
});

test('the socket of another user is not ours', { skip: isRoot ? false : 'needs root' }, async () => {
  assert.equal(await seen(0o755, 0o600, (path) => chownSync(path, 12345, 12345)), false);
});

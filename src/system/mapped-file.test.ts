import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { closeSync, ftruncateSync, openSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { after, describe, test } from 'node:test';
import { SYS } from '../abi/linux.ts';
import { loadKoffi } from './koffi.ts';
import { F_SEAL, libc, seal } from './libc.ts';
import { cannotShrink, MappedFile, nextData } from './mapped-file.ts';

const PAGE = 4096;
const MFD_ALLOW_SEALING = 2;

function whyNot(): string | false {
  try {
    loadKoffi();
    return process.platform === 'linux' ? false : 'needs Linux';
  } catch {
    return 'needs koffi';
  }
}

describe('a mapped file', { skip: whyNot() }, () => {
  const path = join('/dev/shm', `kvmi-test-mapped-${process.pid}`);
  const fd = openSync(path, 'wx+');
  rmSync(path);
  ftruncateSync(fd, 16 * PAGE);
  writeSync(fd, Buffer.alloc(2 * PAGE, 7), 0, 2 * PAGE, 4 * PAGE);
  after(() => closeSync(fd));

  test('copies data and leaves holes to others', () => {
    const mapped = MappedFile.map(fd, 16 * PAGE)!;
    const into = Buffer.alloc(2 * PAGE);
    assert.equal(mapped.copy(4 * PAGE, into), true);
    assert.deepEqual(into, Buffer.alloc(2 * PAGE, 7));
    assert.equal(mapped.copy(3 * PAGE, into), false, 'its first page is a hole');
    assert.equal(mapped.copy(15 * PAGE, into), false, 'beyond the end');
    assert.equal(nextData(fd, 0), 4 * PAGE);
    assert.equal(nextData(fd, 6 * PAGE), undefined);
    mapped.close();
  });

  test('of others is safe to map only when it is sealed', () => {
    assert.equal(cannotShrink(fd), false, 'a file on tmpfs');
    const name = Buffer.from('kvmi-test\0');
    const memfd = Number(
      libc().syscall(SYS.memfd_create, libc().addressOf(name), MFD_ALLOW_SEALING, 0, 0, 0, 0),
    );
    assert.equal(cannotShrink(memfd), false, 'a memfd that is not sealed');
    seal(memfd, F_SEAL.SHRINK);
    assert.equal(cannotShrink(memfd), true);
    closeSync(memfd);
  });

  test('is not there where the kernel does not map', () => {
    const unmappable = openSync('/proc/self/status', 'r');
    assert.equal(MappedFile.map(unmappable, PAGE), undefined);
    closeSync(unmappable);
  });

  test('is not there without koffi', () => {
    const script = `
      const { Module } = await import('node:module');
      const { openSync } = await import('node:fs');
      const { MappedFile } = await import(${JSON.stringify(new URL('./mapped-file.js', import.meta.url).href)});
      const resolve = Module._resolveFilename;
      Module._resolveFilename = (name, ...rest) => {
        if (name === 'koffi' && process.argv[1] === 'without') throw new Error('not installed');
        return resolve(name, ...rest);
      };
      console.log(MappedFile.map(openSync(process.execPath, 'r'), ${PAGE}) !== undefined);
    `;
    const mapsIn = (world: string): string =>
      execFileSync(process.execPath, ['--input-type=module', '--eval', script, world], {
        encoding: 'utf8',
      }).trim();
    assert.equal(mapsIn('with'), 'true');
    assert.equal(mapsIn('without'), 'false');
  });
});

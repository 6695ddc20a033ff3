import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, fstatSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { loadKoffi } from './koffi.ts';
import { type OpenedFile, openMapped } from './mapped-by.ts';
import { type Mapping, mappings } from './proc.ts';

const SIZE = 4096;
const ATTEMPTS = 2000;

function whyNot(): string | false {
  try {
    loadKoffi();
    return process.platform === 'linux' ? false : 'needs Linux';
  } catch {
    return 'needs koffi';
  }
}

/** Runs in a process of its own: maps a file in a way, and keeps descriptors of it in another. */
const SCRIPT = `
  const { libc } = await import(process.argv[1]);
  const [, , file, secret, way] = process.argv;
  const { openSync, closeSync } = await import('node:fs');
  const PATH = 0o10000000;
  const dup = (from, to) => Number(libc().syscall(33, from, to, 0, 0, 0, 0));
  const [NUMBER, SPARE] = [400, 401];
  const shared = (fd, protection) => libc().mmap(0, ${SIZE}, protection, 1, fd, 0);
  let turns = false;
  if (way === 'writable') shared(openSync(file, 'r+'), 3);
  if (way === 'read-only') { const fd = openSync(file, 'r'); shared(fd, 1); }
  if (way === 'mapped for reading') shared(openSync(file, 'r+'), 1);
  if (way === 'path') { const fd = openSync(file, 'r+'); shared(fd, 3); closeSync(fd); openSync(file, PATH); }
  if (way === 'swapped') {
    const fd = openSync(file, 'r+');
    shared(fd, 3);
    const other = openSync(secret, PATH);
    dup(fd, NUMBER); dup(fd, SPARE); closeSync(fd);
    // Nothing but this number alternates; the spare one stays behind it.
    turns = () => { for (let i = 0; i < 1000; i++) { dup(other, NUMBER); dup(SPARE, NUMBER); } setImmediate(turns); };
  }
  console.log('ready');
  if (turns) turns(); else setInterval(() => {}, 1e6);
`;

describe('a file that another process has mapped', { skip: whyNot() }, () => {
  const children: ChildProcess[] = [];
  let directory: string;
  let file: string;
  let secret: string;

  before(() => {
    directory = mkdtempSync(join(tmpdir(), 'kvmi-mapped-'));
    [file, secret] = [join(directory, 'file'), join(directory, 'secret')];
    writeFileSync(file, Buffer.alloc(SIZE, 1));
    writeFileSync(secret, Buffer.alloc(SIZE, 2));
  });
  after(() => {
    for (const child of children) child.kill('SIGKILL');
    rmSync(directory, { recursive: true, force: true });
  });

  async function mapper(way: string): Promise<{ pid: number; mapping: Mapping }> {
    const libc = new URL('./libc.js', import.meta.url).href;
    const args = ['--input-type=module', '--eval', SCRIPT, libc, file, secret, way];
    const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] });
    children.push(child);
    await once(child.stdout!, 'data');
    const pid = child.pid!;
    return { pid, mapping: mappings(pid).find(({ name }) => name === file)! };
  }

  function opened(way: { pid: number; mapping: Mapping }): OpenedFile | undefined {
    const found = openMapped(way.pid, way.mapping);
    if (found) closeSync(found.fd);
    return found;
  }

  test('is writable where the process may write', async () => {
    const found = opened(await mapper('writable'));
    assert.equal(found?.writable, true);
    assert.equal(found?.size, SIZE);
  });

  test('is not where it may only read, or maps it for reading', async () => {
    assert.equal(opened(await mapper('read-only'))?.writable, false);
    assert.equal(opened(await mapper('mapped for reading'))?.writable, false);
  });

  test('is not opened through a descriptor that opens nothing', async () => {
    assert.equal(opened(await mapper('path')), undefined);
  });

  test('is never another one, however its descriptors change', async () => {
    const way = await mapper('swapped');
    const { ino } = statSync(file);
    for (let i = 0; i < ATTEMPTS; i++) {
      const found = openMapped(way.pid, way.mapping);
      if (!found) continue;
      const stat = fstatSync(found.fd);
      closeSync(found.fd);
      assert.equal(stat.ino, ino, `attempt ${i}`);
    }
  });
});

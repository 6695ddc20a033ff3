import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, watch, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { pathToFileURL } from 'node:url';

const MODULE = JSON.stringify(new URL('./guard-process.js', import.meta.url).href);

/** Writes what it was told to argv[3]. */
const GUARD = `
  import { renameSync, writeFileSync } from 'node:fs';
  import { whenReleased } from ${MODULE};
  whenReleased((released) => {
    writeFileSync(process.argv[3] + '.new', released ? 'released' : 'left alone');
    renameSync(process.argv[3] + '.new', process.argv[3]);
    process.exit();
  });
`;

/** Starts the guard at argv[2], which writes to argv[3], and releases it when it reads something. */
const STARTER = `
  import { GuardProcess } from ${MODULE};
  const guard = await GuardProcess.start(new URL(process.argv[2]), [process.argv[3]]);
  process.stdin.once('data', () => guard.release());
  console.log('started');
`;

describe('a guard process', () => {
  let directory: string;
  before(() => {
    directory = mkdtempSync(join(tmpdir(), 'kvmi-guard-process-'));
    writeFileSync(join(directory, 'guard.mjs'), GUARD);
    writeFileSync(join(directory, 'starter.mjs'), STARTER);
  });
  after(() => rmSync(directory, { recursive: true, force: true }));

  /** What the guard is told after `act` on the process that has started it. */
  async function told(name: string, act: (starter: ReturnType<typeof spawn>) => void): Promise<string> {
    const guard = pathToFileURL(join(directory, 'guard.mjs')).href;
    const starter = spawn(process.execPath, [join(directory, 'starter.mjs'), guard, join(directory, name)], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    const changes = watch(directory);
    try {
      await once(starter.stdout!, 'data');
      const written = new Promise<void>((resolve) => {
        changes.on('change', (_, file) => file === name && resolve());
      });
      act(starter);
      await written;
    } finally {
      changes.close();
      starter.kill('SIGKILL');
    }
    return readFileSync(join(directory, name), 'utf8');
  }

  test('is told when it is released', async () => {
    assert.equal(await told('one', (starter) => starter.stdin!.write('.')), 'released');
  });

  test('is told when the process that started it was killed', async () => {
    assert.equal(await told('two', (starter) => starter.kill('SIGKILL')), 'left alone');
  });
});

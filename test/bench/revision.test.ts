import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { buildRevision, commitOf } from '../../bench/revision.ts';
import { runSuite } from '../../bench/run-suite.ts';

/* Another revision is compiled outside the working tree, speaks the same JSON, and leaves nothing behind. */

const directory = mkdtempSync(join(tmpdir(), 'kvmi-revision-test-'));
process.env.TMPDIR = directory;
after(() => rmSync(directory, { recursive: true }));
const packages = join(import.meta.dirname, '..', '..', '..', 'node_modules');
const skip = spawnSync('git', ['--version']).status === 0 ? false : 'no git';

let repositories = 0;

/** A repository with one commit that has these files. */
function repository(files: Readonly<Record<string, string>>): string {
  const root = join(directory, `${repositories++}`);
  for (const [name, text] of Object.entries({
    'package-lock.json': '{}',
    '.gitignore': 'node_modules',
    ...files,
  })) {
    mkdirSync(join(root, name, '..'), { recursive: true });
    writeFileSync(join(root, name), text);
  }
  symlinkSync(packages, join(root, 'node_modules'));
  const git = (...args: readonly string[]) =>
    execFileSync('git', ['-C', root, '-c', 'user.name=a', '-c', 'user.email=a@b', ...args]);
  git('init', '-q');
  git('add', '.');
  git('commit', '-qm', 'a');
  return root;
}

function worktrees(root: string): number {
  return execFileSync('git', ['-C', root, 'worktree', 'list'], { encoding: 'utf8' }).trim().split('\n')
    .length;
}

const leftovers = () => readdirSync(tmpdir()).filter((name) => name.startsWith('kvmi-bench-revision-'));

function suiteProcess(output: string): Record<string, string> {
  const options = { module: 'NodeNext', types: ['node'], rootDir: '.', outDir: 'dist', target: 'ES2023' };
  return {
    'package.json': '{"type":"module"}',
    'tsconfig.json': JSON.stringify({ compilerOptions: options, include: ['bench'] }),
    'bench/suite-process.ts': `console.log(${JSON.stringify(output)});`,
  };
}

test('a revision is compiled, run and taken away', { skip }, async () => {
  const result = { measurements: [{ name: 'a', value: 1, unit: 'ms' }] };
  const root = repository(suiteProcess(JSON.stringify(result)));
  const revision = buildRevision(root, commitOf(root, 'HEAD'));
  assert.ok(!revision.dist.startsWith(root));
  assert.deepEqual(await runSuite(revision.dist, 'a'), result);
  assert.equal(worktrees(root), 2);
  revision.remove();
  assert.equal(worktrees(root), 1);
});

test('a revision without the interface is told, and nothing is left', { skip }, () => {
  const root = repository({ 'bench/main.ts': '' });
  assert.throws(
    () => buildRevision(root, commitOf(root, 'HEAD')),
    /^Error: [0-9a-f]{12}: it has no bench\/suite-process\.ts: .*Choose a later revision/,
  );
  assert.equal(worktrees(root), 1);
  assert.deepEqual(leftovers(), []);
});

for (const output of ['measuring…', '{"rates":[1]}', '{"measurements":[{"name":"a"}]}']) {
  test(`a suite of another revision that prints ${output} is an error`, { skip }, async () => {
    const root = repository(suiteProcess(output));
    const revision = buildRevision(root, commitOf(root, 'HEAD'));
    try {
      await assert.rejects(runSuite(revision.dist, 'a'), /the suite a printed/);
    } finally {
      revision.remove();
    }
  });
}

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';

/* The examples run and print what they are there for, and the page about them names them all. */

const root = join(import.meta.dirname, '..', '..', '..');
const TIMEOUT_MS = 30_000;
const MAX_LINES = 50;

const EXAMPLES: readonly [name: string, line: RegExp, count: number][] = [
  ['list-syscalls', /^vCPU 0 {2}(write|mmap|sched_yield|getpid|spawn|exit|getppid)\(0x[0-9a-f]+\)$/, 12],
  ['calls-of', /^ +0 {2}0x[0-9a-f]+$|"rdi":"0x[0-9a-f]+"/, 10],
  ['guard-page', /^vCPU 0 {2}write of 0x4[123] to 0x10700[012] at rip 0xffffffff[0-9a-f]{8}$/, 3],
  ['watch-cr3', /^vCPU 0 {2}cr3: 0x[0-9a-f]+ -> 0x[0-9a-f]+$/, 10],
];

for (const [name, line, count] of EXAMPLES) {
  test(`examples/${name}.ts`, async () => {
    const { stdout } = await promisify(execFile)(
      process.execPath,
      [join(root, 'dist', 'examples', `${name}.js`)],
      {
        timeout: TIMEOUT_MS,
      },
    );
    const lines = stdout.trimEnd().split('\n');
    assert.equal(lines.filter((each) => line.test(each)).length, count, stdout);
    if (name === 'guard-page')
      assert.equal(lines.at(-1), 'the page begins with 414243', 'writes went through');
    if (name === 'watch-cr3') assert.ok(new Set(lines).size > 1, 'the guest has more than one address space');
    const source = readFileSync(join(root, 'examples', `${name}.ts`), 'utf8');
    assert.ok(source.trimEnd().split('\n').length <= MAX_LINES, `at most ${MAX_LINES} lines`);
  });
}

test('docs/how-to/write-a-tool.md names every example', () => {
  const page = readFileSync(join(root, 'docs', 'how-to', 'write-a-tool.md'), 'utf8');
  const files = readdirSync(join(root, 'examples')).filter((name) => name.endsWith('.ts'));
  assert.deepEqual(
    files.sort(),
    EXAMPLES.map(([name]) => `${name}.ts`).sort(),
    'every example is run by this test',
  );
  for (const file of files) assert.ok(page.includes(`(../../examples/${file})`), `${file} is not named`);
});

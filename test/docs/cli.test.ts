import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { cliPage, errorsPage } from '../../scripts/cli-doc.ts';
import { DESCRIBED_MODULES, sdkPages } from '../../scripts/sdk-doc.ts';
import { loadCommands } from '../../src/cli/commands/index.ts';
import { ERROR_CODES } from '../../src/error-codes.ts';

const root = join(import.meta.dirname, '..', '..', '..');

function page(name: string): string {
  return readFileSync(join(root, 'docs', 'reference', name), 'utf8');
}

test('docs/reference/cli.md is what the commands say about themselves', async () => {
  assert.equal(page('cli.md'), await cliPage(), 'run `npm run docs` and commit the result');
});

describe('the reference of the package', () => {
  for (const [file, declared] of sdkPages()) {
    test(`docs/reference/${file} is what the declarations say`, () => {
      assert.ok(page(file) === declared, 'run `npm run docs` and commit the result');
    });
  }

  test('describes every entry of package.json', () => {
    const { exports } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { exports: object };
    const entries = Object.keys(exports).map((entry) => entry.replace(/^\./, 'kvmi'));
    assert.deepEqual([...DESCRIBED_MODULES].sort(), entries.sort());
  });
});

test('docs/reference/errors.md is what the table of codes says', () => {
  assert.equal(page('errors.md'), errorsPage(), 'run `npm run docs` and commit the result');
});

/** Error codes that the source uses. */
function codesInSource(): Set<string> {
  const found = new Set<string>();
  for (const entry of readdirSync(join(root, 'src'), { recursive: true, encoding: 'utf8' })) {
    if (!entry.endsWith('.ts') || entry.endsWith('.test.ts') || entry === 'error-codes.ts') continue;
    for (const [, code] of readFileSync(join(root, 'src', entry), 'utf8').matchAll(/'(E_[A-Z0-9_]+)'/g)) {
      found.add(code!);
    }
  }
  return found;
}

test('the table has no code that the source does not have', () => {
  const inSource = codesInSource();
  assert.deepEqual(
    Object.keys(ERROR_CODES).filter((code) => !inSource.has(code)),
    [],
  );
});

test('commands have at most three examples, each of which names the command', async () => {
  for (const { name, examples } of await loadCommands()) {
    assert.ok(examples.length >= 1 && examples.length <= 3, name);
    for (const { command } of examples) assert.match(command, new RegExp(`kvmi ${name}\\b`), name);
  }
});

test('names of options in the code are those of their flags', async () => {
  for (const { name, options, columns } of await loadCommands()) {
    for (const [key, { flags }] of Object.entries(options)) {
      const long = /--([\w-]+)/
        .exec(flags)?.[1]
        ?.replace(/-(\w)/g, (_, letter: string) => letter.toUpperCase());
      assert.equal(key, long, `${name} ${flags}`);
    }
    const names = columns.map((column) => column.name);
    assert.equal(new Set(names).size, names.length, `${name}: column names are unique`);
    if (columns.length > 0)
      assert.ok(
        columns.some((column) => column.key),
        `${name} has a key`,
      );
  }
});

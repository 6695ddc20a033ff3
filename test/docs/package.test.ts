import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { dirname, join, normalize } from 'node:path';
import { test } from 'node:test';

/* What whoever installs the package finds in it. */

const root = join(import.meta.dirname, '..', '..', '..');

interface Package {
  readonly bin: Readonly<Record<string, string>>;
  readonly exports: Readonly<Record<string, { readonly types: string; readonly default: string }>>;
}

function packed(): string[] {
  const args = ['pack', '--dry-run', '--json', '--ignore-scripts'];
  const output = execFileSync('npm', args, {
    cwd: root,
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  const [{ files }] = JSON.parse(output) as [{ files: { path: string }[] }];
  return files.map(({ path }) => path);
}

/** Places that a page names relative to itself, of the package's root; without those inside of code. */
function links(page: string): string[] {
  const text = readFileSync(join(root, page), 'utf8').replace(/^```.*?^```|`[^`\n]*`/gms, '');
  const targets = [...text.matchAll(/\]\(([^)\s]+)\)|(?:src|href)="([^"]+)"/g)].map(
    (match) => match[1] ?? match[2]!,
  );
  return targets
    .filter((target) => !/^([a-z]+:|#)/.test(target))
    .map((target) => normalize(join(dirname(page), target.replace(/#.*/, ''))));
}

const files = packed();

test('every link of README.md, CHANGELOG.md and the documentation leads to a file in the package', () => {
  const pages = files.filter((path) => /^(docs\/.*|[A-Z]+)\.md$/.test(path));
  const all = pages.flatMap((page) => links(page).map((target) => ({ page, target })));
  assert.ok(pages.includes('README.md') && pages.includes('docs/architecture.md'));
  assert.ok(all.length > 40, 'links are found');
  assert.deepEqual(
    all.filter(({ target }) => !files.includes(target)),
    [],
    'put it into "files" of package.json, or name it without a link',
  );
});

test('commands and entries of package.json are in the package', () => {
  const { bin, exports } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as Package;
  const named = [
    ...Object.values(bin),
    ...Object.values(exports).flatMap((entry) => [entry.types, entry.default]),
  ];
  assert.deepEqual(
    named.filter((path) => !files.includes(normalize(path))),
    [],
  );
});

test('the package has no tests, no source maps and no sources of the library', () => {
  assert.deepEqual(
    files.filter((path) => /\.test\.|\.map$|^src\//.test(path)),
    [],
  );
});

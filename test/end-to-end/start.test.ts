import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, utimesSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';

/* bin/kvmi before the command line is there: it compiles in a checkout, says so, and fails with a message. */

const repository = join(import.meta.dirname, '..', '..', '..');
const directory = mkdtempSync(join(tmpdir(), 'kvmi-start-'));
after(() => rmSync(directory, { recursive: true }));

const COMPILING = 'kvmi: compiling (once after each change)…\n';

let checkouts = 0;

/** A checkout whose command line only prints its arguments. */
class Checkout {
  readonly root = join(directory, `${checkouts++}`);

  constructor() {
    for (const name of ['bin/kvmi', 'scripts/build.sh'])
      cpSync(join(repository, name), join(this.root, name));
    mkdirSync(join(this.root, 'src', 'cli'), { recursive: true });
    symlinkSync(join(repository, 'node_modules'), join(this.root, 'node_modules'));
    const compilerOptions = {
      ...{ module: 'NodeNext', target: 'ES2023', types: ['node'], rootDir: '.', outDir: 'dist' },
      ...{ incremental: true, tsBuildInfoFile: 'dist/.tsbuildinfo' },
    };
    this.write('package.json', '{"type":"module"}');
    this.write('tsconfig.json', JSON.stringify({ compilerOptions, include: ['src'] }));
    this.writeMain('console.log(argv.join());');
  }

  write(name: string, text: string): void {
    writeFileSync(join(this.root, name), text);
    // Newer than what was compiled, however coarse the clock of the file system is.
    const soon = Date.now() / 1000 + 2;
    if (name.startsWith('src')) utimesSync(join(this.root, name), soon, soon);
  }

  writeMain(body: string): void {
    this.write('src/cli/main.ts', `export function main(argv: string[]): void { ${body} }\n`);
  }

  kvmi(...args: readonly string[]): { status: number | null; stdout: string; stderr: string } {
    return spawnSync(process.execPath, [join(this.root, 'bin', 'kvmi'), ...args], { encoding: 'utf8' });
  }
}

test('the first run in a checkout says that it compiles', () => {
  const { status, stdout, stderr } = new Checkout().kvmi('a', 'b');
  assert.deepEqual([status, stdout, stderr], [0, 'a,b\n', COMPILING]);
});

test('nothing is said when nothing changed', () => {
  const checkout = new Checkout();
  const past = new Date(Date.now() - 60_000);
  utimesSync(join(checkout.root, 'src', 'cli', 'main.ts'), past, past);
  checkout.kvmi();
  assert.deepEqual(checkout.kvmi('again').stderr, '');
});

test('sources that do not compile end it with a message, each time', () => {
  const checkout = new Checkout();
  checkout.kvmi();
  checkout.writeMain('const n: number = argv; console.log("ran", n);');
  for (let i = 0; i < 2; i++) {
    const { status, stdout, stderr } = checkout.kvmi();
    assert.equal(status, 1);
    assert.equal(stdout, '', 'what does not compile does not run');
    assert.match(stderr, /main\.ts.*TS2322.*kvmi: error: the sources do not compile/s);
  }
});

test('a source tree that cannot be read is an error for people', () => {
  const checkout = new Checkout();
  checkout.kvmi();
  rmSync(join(checkout.root, 'src'), { recursive: true });
  writeFileSync(join(checkout.root, 'src'), '');
  const { status, stderr } = checkout.kvmi();
  assert.equal(status, 1);
  assert.match(stderr, /^kvmi: error: cannot start: ENOTDIR: .*src' \[ENOTDIR\]\n$/);
});

test('a link that leads nowhere among the sources is no error', () => {
  const checkout = new Checkout();
  symlinkSync('nowhere', join(checkout.root, 'src', '.#main.ts'));
  assert.equal(checkout.kvmi('x').stdout, 'x\n');
});

test('too few open files to load the command line is an error for people', () => {
  const kvmi = `exec '${process.execPath}' '${join(repository, 'bin', 'kvmi')}' version`;
  // How many files Node itself needs before it reads the first of ours is its own business.
  const said = [20, 22, 24, 26, 28].map(
    (limit) => spawnSync('sh', ['-c', `ulimit -n ${limit}; ${kvmi}`], { encoding: 'utf8' }).stderr,
  );
  const ours = said.filter((text) => /EMFILE.*dist\/src\/cli\//.test(text));
  assert.ok(ours.length > 0, said.join('\n'));
  for (const text of ours)
    assert.match(text, /^kvmi: error: cannot start: EMFILE.*\nhint: Raise the limit of open files.*\n$/);
});

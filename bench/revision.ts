import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { BenchError } from './bench-error.ts';
import { SUITE_PROCESS } from './run-suite.ts';

/** Another revision, compiled in a git worktree of its own. */
export interface Revision {
  readonly commit: string;
  /** Its compiled tree. */
  readonly dist: string;
  /** Takes the worktree away. Idempotent. */
  remove(): void;
}

/** The commit that `revision` names in the repository at `root`. */
export function commitOf(root: string, revision: string): string {
  const name = `${revision}^{commit}`;
  const { status, stdout } = git(root, 'rev-parse', '--verify', '--quiet', '--end-of-options', name);
  if (status !== 0) throw new BenchError(`git knows no commit "${revision}". Try: git log --oneline`);
  return stdout.trim();
}

/**
 * Compiles a commit outside the working tree.
 *
 * @throws BenchError, also when it is older than the interface that benchmarks of two revisions share; nothing
 * is left then.
 */
export function buildRevision(root: string, commit: string): Revision {
  const directory = mkdtempSync(join(tmpdir(), 'kvmi-bench-revision-'));
  const tree = join(directory, 'tree');
  const remove = (): void => {
    rmSync(directory, { recursive: true, force: true });
    git(root, 'worktree', 'prune');
  };
  try {
    const { status, stderr } = git(root, 'worktree', 'add', '--quiet', '--detach', tree, commit);
    if (status !== 0) throw new BenchError(`git worktree add failed: ${stderr.trim()}`);
    checkInterface(tree);
    providePackages(root, tree);
    const downloads = join(root, '.cache');
    if (existsSync(downloads)) symlinkSync(downloads, join(tree, '.cache'));
    const compiler = join('node_modules', 'typescript', 'bin', 'tsc');
    inTree(tree, process.execPath, [compiler, '-p', 'tsconfig.json', '--noCheck']);
  } catch (error) {
    remove();
    throw error instanceof BenchError ? new BenchError(`${commit.slice(0, 12)}: ${error.message}`) : error;
  }
  return { commit, dist: join(tree, 'dist'), remove };
}

function checkInterface(tree: string): void {
  if (existsSync(join(tree, 'bench', `${SUITE_PROCESS}.ts`))) return;
  throw new BenchError(
    `it has no bench/${SUITE_PROCESS}.ts: its benchmarks cannot be run from outside. Choose a later revision.`,
  );
}

/** The packages of the working tree, when they are the same. */
function providePackages(root: string, tree: string): void {
  const [ours, theirs] = [root, tree].map((directory) => join(directory, 'package-lock.json')) as [
    string,
    string,
  ];
  if (!existsSync(theirs)) throw new BenchError('it has no package-lock.json: there is nothing to compile');
  if (readFileSync(ours).equals(readFileSync(theirs)))
    symlinkSync(join(root, 'node_modules'), join(tree, 'node_modules'));
  else inTree(tree, 'npm', ['ci', '--no-audit', '--no-fund', '--loglevel=error']);
}

function inTree(tree: string, command: string, args: readonly string[]): void {
  const { status, error } = spawnSync(command, args, { cwd: tree, stdio: ['ignore', 2, 2] });
  if (status !== 0)
    throw new BenchError(`it cannot be built: ${command} ${error?.message ?? `ended with ${status}`}`);
}

function git(root: string, ...args: readonly string[]) {
  return spawnSync('git', ['-C', root, ...args], { encoding: 'utf8' });
}

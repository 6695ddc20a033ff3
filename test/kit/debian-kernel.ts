import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** The meta packages that name Debian's newest cloud kernel of a series. */
const META_PACKAGES = { '6.1': 'linux-image-cloud-amd64', '6.12': 'linux-image-6.12-cloud-amd64' } as const;

export type KernelSeries = keyof typeof META_PACKAGES;

export interface DebianKernel {
  /** As in `uname -r`. */
  readonly release: string;
  readonly image: string;
  /** `lib/modules/RELEASE` of the package. */
  readonly modules: string;
}

/** Downloads and what is made of them; kept between runs. */
export const CACHE = join(repositoryRoot(), '.cache');

function repositoryRoot(): string {
  let directory = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(directory, 'package.json'))) directory = dirname(directory);
  return directory;
}

/**
 * Debian's cloud kernel, unpacked into {@link CACHE} and not installed. Answers the reason when there is none
 * and it cannot be downloaded.
 */
export function debianKernel(series: KernelSeries = '6.1'): DebianKernel | string {
  const root = join(CACHE, `kernel-${series}`);
  return unpacked(root) ?? download(series, root) ?? unpacked(root) ?? `no kernel in ${root}`;
}

function unpacked(root: string): DebianKernel | undefined {
  const boot = join(root, 'boot');
  const image = existsSync(boot) ? readdirSync(boot).find((name) => name.startsWith('vmlinuz-')) : undefined;
  if (image === undefined) return undefined;
  const release = image.slice('vmlinuz-'.length);
  return { release, image: join(boot, image), modules: join(root, 'lib/modules', release) };
}

/** The reason when it did not work. */
function download(series: KernelSeries, root: string): string | undefined {
  const downloads = join(CACHE, 'debian');
  mkdirSync(downloads, { recursive: true });
  try {
    const depends = run('apt-cache', ['depends', META_PACKAGES[series]]);
    const name = /Depends: (linux-image-\S+)/.exec(depends)?.[1];
    if (name === undefined) return `apt knows no ${META_PACKAGES[series]}`;
    const find = () => readdirSync(downloads).find((file) => file.startsWith(`${name}_`));
    if (find() === undefined) run('apt-get', ['download', name], downloads);
    const file = find();
    if (file === undefined) return `apt-get download ${name} left nothing in ${downloads}`;
    const fresh = `${root}.${process.pid}`;
    run('dpkg-deb', ['-x', join(downloads, file), fresh]);
    if (existsSync(root)) rmSync(fresh, { recursive: true });
    else renameSync(fresh, root);
    return undefined;
  } catch (error) {
    return `no Debian kernel: ${error instanceof Error ? error.message.split('\n')[0] : error}`;
  }
}

function run(command: string, args: readonly string[], cwd?: string): string {
  return execFileSync(command, args, {
    cwd,
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'ignore'],
    timeout: 300_000,
  });
}

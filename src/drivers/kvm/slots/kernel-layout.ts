import { existsSync, mkdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { Btf } from '../../../btf/btf.ts';
import { fieldOf, sizeOf } from '../../../btf/types.ts';
import { KvmiError, messageOf } from '../../../error.ts';
import { readText } from '../../../system/proc.ts';

/* Where the kernel has what: offsets of structure members from the type information that the kernel carries. */

const FOLDER = '/sys/kernel/btf';

/** The structures and members that are needed, as `structure.member`; a structure's own size as its name alone. */
export type Layout = Readonly<Record<string, number>>;

/**
 * Offsets (`kvm.memslots`) and sizes (`kvm_memory_slot`) in the running kernel. Kept in a file between runs, because
 * reading the type information takes a while.
 *
 * @throws KvmiError with code E_NO_BTF when the kernel has no type information or not that member.
 */
export function kernelLayout(names: readonly string[]): Layout {
  const cache = cacheFile();
  const cached = cache && readCache(cache, names);
  if (cached) return cached;
  const layout = readLayout(names);
  if (cache) writeCache(cache, layout);
  return layout;
}

function readLayout(names: readonly string[]): Layout {
  let types: Btf;
  try {
    types = new Btf(readFileSync(join(FOLDER, 'vmlinux')));
    const module = join(FOLDER, 'kvm');
    if (existsSync(module)) types = new Btf(readFileSync(module), types);
  } catch (error) {
    throw new KvmiError('E_NO_BTF', `the kernel's type information cannot be read: ${messageOf(error)}`, {
      hint: 'It needs a kernel with CONFIG_DEBUG_INFO_BTF, as distributions build it.',
      cause: error,
    });
  }
  return Object.fromEntries(names.map((name) => [name, lookUp(types, name)]));
}

function lookUp(types: Btf, name: string): number {
  const [structure, member] = name.split('.') as [string, string?];
  const type = types.find(structure);
  const value = type && (member === undefined ? sizeOf(type) : fieldOf(type, member)?.offset);
  if (value === undefined) {
    throw new KvmiError('E_NO_BTF', `this kernel has no ${name} that its type information tells of`);
  }
  return value;
}

/** One file for each kernel build. */
function cacheFile(): string | undefined {
  const release = readText('/proc/sys/kernel/osrelease')?.trim();
  const size = statSync(join(FOLDER, 'vmlinux'), { throwIfNoEntry: false })?.size;
  if (!release || !size) return undefined;
  const folder = process.env.XDG_CACHE_HOME ?? join(homedir(), '.cache');
  return join(folder, 'kvmi', `layout-${release}-${size}.json`);
}

function readCache(file: string, names: readonly string[]): Layout | undefined {
  try {
    const layout = JSON.parse(readFileSync(file, 'utf8')) as Record<string, unknown>;
    return names.every((name) => Number.isInteger(layout[name])) ? (layout as Layout) : undefined;
  } catch {
    return undefined;
  }
}

function writeCache(file: string, layout: Layout): void {
  try {
    mkdirSync(join(file, '..'), { recursive: true, mode: 0o700 });
    const temporary = `${file}.${process.pid}`;
    writeFileSync(temporary, JSON.stringify(layout), { mode: 0o600 });
    renameSync(temporary, file);
  } catch {
    // Only slower the next time.
  }
}

import type { Gva } from '../machine/index.ts';
import { textOf } from '../reading/text.ts';
import type { Walk } from '../reading/walk.ts';
import type { Obj, Session } from './session.ts';

const MAX_COMPONENTS = 512;
const MAX_NAME = 255;

/** What the kernel calls a file that has no path (fs/d_path.c and the `d_dname` of each file system). */
const NAMELESS: Readonly<Record<string, (name: string, inode: number) => string>> = {
  pipefs: (_, inode) => `pipe:[${inode}]`,
  sockfs: (_, inode) => `socket:[${inode}]`,
  anon_inodefs: (name) => `anon_inode:${name}`,
  nsfs: (name, inode) => `${name}:[${inode}]`,
};

/** Paths of files, as /proc shows them. Directories are shared by many files and therefore remembered. */
export class Paths {
  readonly #session: Session;
  readonly #known = new Map<string, string>();
  readonly #fileSystems = new Map<Gva, string>();

  constructor(session: Session) {
    this.#session = session;
  }

  /** The path of an open file, by its struct file. */
  *ofFile(file: Obj<'file'>): Walk<string> {
    return yield* this.of(file.pointer('mount'), file.pointer('dentry'));
  }

  /** The path of a directory entry under a mount, both as pointers in a struct path. */
  *of(vfsMount: Gva, dentry: Gva): Walk<string> {
    const key = `${vfsMount} ${dentry}`;
    const known = this.#known.get(key);
    if (known !== undefined) return known;
    const path = yield* this.#compute(vfsMount, dentry);
    this.#known.set(key, path);
    return path;
  }

  *#compute(vfsMount: Gva, gva: Gva): Walk<string> {
    const session = this.#session;
    const entry = yield* session.object('dentry', gva);
    const nameless = yield* this.#nameless(entry);
    if (nameless !== undefined) return nameless;
    const parts: string[] = [];
    let dentry = entry;
    let mount = yield* session.around('mount', 'vfsMount', vfsMount);
    // What has no parent and is not the root of its mount never had a name in a directory (memfd).
    const isRoot = entry.pointer('parent') === gva;
    const isDeleted = isRoot ? gva !== mount.pointer('root') : entry.pointer('hash') === 0n;
    for (let step = 0; step < MAX_COMPONENTS; step++) {
      if (dentry.gva === mount.pointer('root')) {
        const parent = mount.pointer('parent');
        if (parent === mount.gva) return finish(parts, isDeleted);
        dentry = yield* session.object('dentry', mount.pointer('mountPoint'));
        mount = yield* session.object('mount', parent);
        continue;
      }
      const parent = dentry.pointer('parent');
      parts.push(yield* this.#name(dentry));
      // Not under its mount: the mount was taken away (umount -l).
      if (parent === dentry.gva) return finish(parts, isDeleted);
      dentry = yield* session.object('dentry', parent);
    }
    session.note(`a path has more than ${MAX_COMPONENTS} components`);
    return finish(parts, isDeleted);
  }

  *#name(dentry: Obj<'dentry'>): Walk<string> {
    const length = Math.min(MAX_NAME, dentry.number('nameLength'));
    return textOf(yield* this.#session.space.read(dentry.pointer('name'), length));
  }

  *#nameless(dentry: Obj<'dentry'>): Walk<string | undefined> {
    const type = yield* this.fileSystem(dentry.pointer('superBlock'));
    const format = NAMELESS[type];
    if (format === undefined) return undefined;
    const inode = dentry.pointer('inode');
    const number = inode === 0n ? 0 : (yield* this.#session.object('inode', inode)).number('number');
    return format(yield* this.#name(dentry), number);
  }

  /** The name of the file system's type, by its super block. */
  *fileSystem(superBlock: Gva): Walk<string> {
    const known = this.#fileSystems.get(superBlock);
    if (known !== undefined) return known;
    const block = yield* this.#session.object('superBlock', superBlock);
    const type = yield* this.#session.object('fileSystem', block.pointer('type'));
    const name = yield* this.#session.space.string(type.pointer('name'), 64);
    this.#fileSystems.set(superBlock, name);
    return name;
  }
}

function finish(parts: readonly string[], isDeleted: boolean): string {
  const path = `/${[...parts].reverse().join('/')}`;
  return isDeleted ? `${path} (deleted)` : path;
}

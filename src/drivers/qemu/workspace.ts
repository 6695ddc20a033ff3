import { randomBytes } from 'node:crypto';
import {
  chmodSync,
  closeSync,
  constants,
  existsSync,
  fchownSync,
  fstatSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readSync,
  rmdirSync,
  unlinkSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { KvmiError } from '../../error.ts';
import { statusNumber } from '../../system/proc.ts';

/** How the directories are named, so that what a killed host left can be recognised. */
export const WORKSPACE_PREFIX = 'kvmi-qemu-';
const NAME = new RegExp(`^${WORKSPACE_PREFIX}[0-9a-f]{16}$`);

const { O_CREAT, O_DIRECTORY, O_EXCL, O_NOFOLLOW, O_RDWR } = constants;
/** The directory in which QEMU's user may do what it wants, and the only name in it that is ours. */
const SOCKETS = 'sockets';
const SOCKET = 'gdb';
/** Others may reach what they know the name of, and see nothing. */
const REACHABLE = 0o711;

/** Whether a directory of that name in `parent` is one that a host side uses. */
export function isWorkspace(parent: string, name: string): boolean {
  return parent === parentDirectory() && NAME.test(name);
}

/** Whether a gdbstub at `path` was added by a host side. */
export function isWorkspaceSocket(path: string): boolean {
  const sockets = dirname(path);
  return basename(path) === SOCKET && basename(sockets) === SOCKETS && NAME.test(basename(dirname(sockets)));
}

function parentDirectory(): string {
  return existsSync('/dev/shm') ? '/dev/shm' : tmpdir();
}

/**
 * A place (on tmpfs where there is one) through which QEMU hands out state and memory, and where it puts the socket of
 * its gdbstub.
 *
 * QEMU's user may be an enemy. So the directory belongs to this process's user; in it are files that are made here
 * for QEMU to write to, read through the descriptor that made them, and one directory that is QEMU's, for the socket
 * that it has to make itself.
 */
export class Workspace {
  /** Where it is, or will be. */
  readonly path: string;
  readonly #pid: number | undefined;
  #created = false;
  #nextFile = 0;

  /**
   * The directory is made when it is first used, for the user of `pid` where this process may give files away. `path`: one
   * that another process has planned, and may have made.
   */
  constructor(pid: number | undefined, path?: string) {
    this.#pid = pid;
    this.#created = path !== undefined && isDirectory(path);
    this.path = path ?? join(parentDirectory(), `${WORKSPACE_PREFIX}${randomBytes(8).toString('hex')}`);
  }

  /** Where QEMU can make the socket of its gdbstub. */
  get socket(): string {
    return join(this.path, SOCKETS, SOCKET);
  }

  /**
   * Lets `fill` write a file, and passes its bytes to `use`; the file is gone afterwards. E_QEMU_STATE when there are more
   * than `limit` bytes.
   */
  async receive<T>(
    limit: number,
    fill: (path: string) => Promise<unknown>,
    use: (bytes: Buffer) => T,
  ): Promise<T> {
    this.create();
    const file = join(this.path, String(this.#nextFile++));
    const fd = openSync(file, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600);
    try {
      this.#giveAway(fd);
      await fill(file);
      return use(readBounded(fd, limit));
    } finally {
      closeSync(fd);
      // Once the directory is removed its name may be somebody else's.
      if (this.#created) unlinkSync(file);
    }
  }

  remove(): void {
    if (this.#created) removeWorkspace(this.path);
    this.#created = false;
  }

  create(): void {
    if (this.#created) return;
    mkdirSync(this.path, { mode: 0o700 });
    this.#created = true;
    mkdirSync(join(this.path, SOCKETS), { mode: 0o700 });
    const fd = openSync(join(this.path, SOCKETS), O_DIRECTORY | O_NOFOLLOW);
    try {
      if (this.#giveAway(fd)) chmodSync(this.path, REACHABLE);
    } finally {
      closeSync(fd);
    }
  }

  /** Gives a file to QEMU's user; false when it stays this process's. */
  #giveAway(fd: number): boolean {
    const user = this.#pid === undefined ? undefined : statusNumber(this.#pid, 'Uid', 1);
    if (user === undefined || user === process.geteuid?.()) return false;
    try {
      fchownSync(fd, user, fstatSync(fd).gid);
      return true;
    } catch {
      // QEMU will say so when it cannot write there.
      return false;
    }
  }
}

/**
 * Removes what {@link Workspace} made, name by name and through descriptors of the directories: nothing is followed, and
 * nothing else is removed. What QEMU's user has put beside its socket stays, and so do the directories that hold it then.
 */
export function removeWorkspace(path: string): void {
  const own = openOwn(path);
  if (own === undefined) return;
  try {
    const here = `/proc/self/fd/${own}`;
    for (const name of readdirSync(here)) {
      if (/^\d+$/.test(name)) attempt(() => unlinkSync(`${here}/${name}`));
    }
    attempt(() => {
      const sockets = openSync(`${here}/${SOCKETS}`, O_DIRECTORY | O_NOFOLLOW);
      try {
        unlinkSync(`/proc/self/fd/${sockets}/${SOCKET}`);
      } finally {
        closeSync(sockets);
      }
    });
    attempt(() => rmdirSync(`${here}/${SOCKETS}`));
    attempt(() => rmdirSync(path));
  } finally {
    closeSync(own);
  }
}

/** A directory of this user's, by its descriptor; undefined when something else is there. */
function openOwn(path: string): number | undefined {
  let fd: number;
  try {
    fd = openSync(path, O_DIRECTORY | O_NOFOLLOW);
  } catch {
    return undefined;
  }
  if (fstatSync(fd).uid === process.geteuid?.()) return fd;
  closeSync(fd);
  return undefined;
}

function isDirectory(path: string): boolean {
  return lstatSync(path, { throwIfNoEntry: false })?.isDirectory() === true;
}

function attempt(remove: () => void): void {
  try {
    remove();
  } catch {
    // It is gone already, or holds what is not ours.
  }
}

function readBounded(fd: number, limit: number): Buffer {
  const { size } = fstatSync(fd);
  if (size > limit) {
    throw new KvmiError('E_QEMU_STATE', `QEMU wrote ${size} bytes where at most ${limit} are expected`);
  }
  const bytes = Buffer.alloc(size);
  let done = 0;
  for (let got = -1; done < size && got !== 0; done += got)
    got = readSync(fd, bytes, done, size - done, done);
  return bytes.subarray(0, done);
}

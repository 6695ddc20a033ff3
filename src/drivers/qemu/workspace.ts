import { randomBytes } from 'node:crypto';
import { chownSync, existsSync, lstatSync, mkdirSync, readFileSync, rmSync, unlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { statusNumber } from '../../system/proc.ts';

/** How the directories are named, so that what a killed host left can be recognised. */
const NAME = /^kvmi-qemu-[0-9a-f]{16}$/;
const SOCKET = 'gdb';

/** Whether a directory of that name in `parent` is one that a host side uses. */
export function isWorkspace(parent: string, name: string): boolean {
  return parent === parentDirectory() && NAME.test(name);
}

/** Whether a gdbstub at `path` was added by a host side. */
export function isWorkspaceSocket(path: string): boolean {
  return basename(path) === SOCKET && NAME.test(basename(dirname(path)));
}

function parentDirectory(): string {
  return existsSync('/dev/shm') ? '/dev/shm' : tmpdir();
}

/**
 * A private directory (mode 0700, on tmpfs where there is one) that QEMU can write to: for the socket of its
 * gdbstub, and for the files through which it hands out state and memory.
 */
export class Workspace {
  /** Where it is, or will be. */
  readonly path: string;
  readonly #pid: number | undefined;
  #created = false;
  #nextFile = 0;

  /**
   * The directory is made when it is first used, for the user of `pid` where this process may give it away. `path`: one
   * that another process has planned, and may have made.
   */
  constructor(pid: number | undefined, path?: string) {
    this.#pid = pid;
    this.#created = path !== undefined && isDirectory(path);
    this.path = path ?? join(parentDirectory(), `kvmi-qemu-${randomBytes(8).toString('hex')}`);
  }

  /** Where a gdbstub listens that is added for this process. */
  get socket(): string {
    return join(this.path, SOCKET);
  }

  /** Lets `fill` write a file, and passes its bytes to `use`; the file is gone afterwards. */
  async receive<T>(fill: (path: string) => Promise<unknown>, use: (bytes: Buffer) => T): Promise<T> {
    this.create();
    const file = join(this.path, String(this.#nextFile++));
    try {
      await fill(file);
      return use(readFileSync(file));
    } finally {
      if (existsSync(file)) unlinkSync(file);
    }
  }

  remove(): void {
    if (this.#created) rmSync(this.path, { recursive: true, force: true });
    this.#created = false;
  }

  create(): void {
    if (this.#created) return;
    mkdirSync(this.path, 0o700);
    this.#created = true;
    const user = this.#pid === undefined ? undefined : statusNumber(this.#pid, 'Uid', 1);
    if (user !== undefined && user !== process.getuid?.()) {
      try {
        chownSync(this.path, user, -1);
      } catch {
        // QEMU will say so when it cannot write there.
      }
    }
  }
}

function isDirectory(path: string): boolean {
  return lstatSync(path, { throwIfNoEntry: false })?.isDirectory() === true;
}

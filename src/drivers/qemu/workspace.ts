import { chownSync, existsSync, mkdtempSync, readFileSync, rmSync, unlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { statusNumber } from '../../system/proc.ts';

/** How the directories are named, so that what a killed host left can be recognised. */
export const WORKSPACE_PREFIX = 'kvmi-qemu-';

/**
 * A private directory (mode 0700, on tmpfs where there is one) that QEMU can write to: for the socket of its
 * gdbstub, and for the files through which it hands out state and memory.
 */
export class Workspace {
  readonly #pid: number | undefined;
  #path: string | undefined;
  #nextFile = 0;

  /** The directory is made when it is first used, for the user of `pid` where this process may give it away. */
  constructor(pid: number | undefined) {
    this.#pid = pid;
  }

  get path(): string {
    this.#path ??= this.#create();
    return this.#path;
  }

  /** Lets `fill` write a file, and passes its bytes to `use`; the file is gone afterwards. */
  async receive<T>(fill: (path: string) => Promise<unknown>, use: (bytes: Buffer) => T): Promise<T> {
    const file = join(this.path, String(this.#nextFile++));
    try {
      await fill(file);
      return use(readFileSync(file));
    } finally {
      if (existsSync(file)) unlinkSync(file);
    }
  }

  remove(): void {
    if (this.#path !== undefined) rmSync(this.#path, { recursive: true, force: true });
    this.#path = undefined;
  }

  #create(): string {
    const parent = existsSync('/dev/shm') ? '/dev/shm' : tmpdir();
    const path = mkdtempSync(join(parent, WORKSPACE_PREFIX));
    const user = this.#pid === undefined ? undefined : statusNumber(this.#pid, 'Uid', 1);
    if (user !== undefined && user !== process.getuid?.()) {
      try {
        chownSync(path, user, -1);
      } catch {
        // QEMU will say so when it cannot write there.
      }
    }
    return path;
  }
}

import { chmodSync, linkSync, lstatSync, mkdtempSync, rmSync, type Stats } from 'node:fs';
import { createConnection } from 'node:net';
import { dirname, join } from 'node:path';
import { KvmiError, messageOf } from '../error.ts';

/** sockaddr_un.sun_path, less its NUL: 108 on Linux, 104 elsewhere. */
const MAX_PATH_BYTES = process.platform === 'linux' ? 107 : 103;

/** How long a listener may take to show that it is alive. */
const PROBE_MS = 1000;

/**
 * The path of a Unix socket that is going to listen.
 *
 * The socket is bound inside a directory that only its owner can enter, made 0600 and then moved to its
 * place, so that nobody else can connect at any moment.
 */
export class UnixPath {
  readonly #path: string;
  readonly #directory: string;
  readonly bindPath: string;
  #identity: string | undefined;

  private constructor(path: string, directory: string) {
    this.#path = path;
    this.#directory = directory;
    this.bindPath = join(directory, 's');
  }

  /** @throws KvmiError with code E_LISTEN or E_IN_USE. */
  static async claim(path: string): Promise<UnixPath> {
    await removeStale(path);
    const prefix = join(dirname(path), '.k');
    const longest = Math.max(Buffer.byteLength(path), Buffer.byteLength(`${prefix}XXXXXX/s`));
    if (longest > MAX_PATH_BYTES) {
      throw new KvmiError('E_LISTEN', `cannot listen on unix:${path}: the path is too long`, {
        hint: `A socket's path has at most ${MAX_PATH_BYTES} bytes; choose a directory nearer to the root.`,
        data: { path },
      });
    }
    try {
      return new UnixPath(path, mkdtempSync(prefix));
    } catch (cause) {
      throw new KvmiError('E_LISTEN', `cannot listen on unix:${path}: ${messageOf(cause)}`, {
        hint: 'The directory must exist and this user must be allowed to write to it.',
        data: { path },
        cause,
      });
    }
  }

  /** Moves the bound socket to its place. Throws a KvmiError with code E_IN_USE when somebody was faster. */
  publish(): void {
    chmodSync(this.bindPath, 0o600);
    this.#identity = identityOf(lstatSync(this.bindPath));
    try {
      linkSync(this.bindPath, this.#path);
    } catch (cause) {
      throw (cause as NodeJS.ErrnoException).code === 'EEXIST' ? inUse(this.#path) : cause;
    }
    this.abandon();
  }

  /** Removes the private directory. */
  abandon(): void {
    rmSync(this.#directory, { recursive: true, force: true });
  }

  /** Removes the published socket, unless somebody put another one in its place. */
  remove(): void {
    const stats = lstatSync(this.#path, { throwIfNoEntry: false });
    if (stats && identityOf(stats) === this.#identity) rmSync(this.#path, { force: true });
  }
}

function identityOf(stats: Stats): string {
  return `${stats.dev}:${stats.ino}`;
}

function inUse(path: string): KvmiError {
  return new KvmiError('E_IN_USE', `cannot listen on unix:${path}: somebody listens there already`, {
    hint: 'Stop the other tool, or choose another path.',
    data: { path },
  });
}

/** Removes a socket that nobody answers on; anything else that is there is an error. */
async function removeStale(path: string): Promise<void> {
  const stats = lstatSync(path, { throwIfNoEntry: false });
  if (stats === undefined) return;
  if (!stats.isSocket()) {
    throw new KvmiError(
      'E_LISTEN',
      `cannot listen on unix:${path}: something that is not a socket is there`,
      {
        hint: 'Choose another path, or move that file away.',
        data: { path },
      },
    );
  }
  if (await answers(path)) throw inUse(path);
  rmSync(path, { force: true });
}

/** Whether a socket is in use: only a refused connection, or that it vanished, says that it is not. */
function answers(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = createConnection(path);
    const done = (alive: boolean) => {
      clearTimeout(timer);
      socket.destroy();
      resolve(alive);
    };
    const timer = setTimeout(() => done(true), PROBE_MS);
    socket.once('connect', () => done(true));
    socket.once('error', ({ code }: NodeJS.ErrnoException) => {
      done(code !== 'ECONNREFUSED' && code !== 'ENOENT');
    });
  });
}

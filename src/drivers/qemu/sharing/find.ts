import { setTimeout as sleep } from 'node:timers/promises';
import type { KvmiError } from '../../../error.ts';
import { closedError, connectError, UnixQmp } from '../unix-qmp.ts';
import { busyError, endsOf, isKvmi, isStopped, programOf } from './busy.ts';
import { identityOf, offerPath } from './offer-path.ts';

/** How long it is waited for QEMU's socket while nobody is known to hold it. */
const PATIENCE_MS = 10_000;
/** After this time it is looked for who holds it: somebody who is not kvmi is not waited for. */
const LOOK_MS = 1500;
/** The first pause; later ones are longer, and none is the same in two processes. */
const PAUSE_MS = 20;
const LONGEST_PAUSE_MS = 250;

/** A connection to QEMU's monitor. */
export interface Found {
  readonly qmp: UnixQmp;
  /** What is behind the path. */
  readonly identity: string;
  /** Set when the connection leads through another process. */
  readonly shared: { readonly holder: number } | undefined;
}

interface Wanted {
  /** Not before this time QEMU's own socket is tried. */
  readonly directAfter: number;
  /** What has to be behind the path: QEMU has ended when it is something else. */
  readonly identity?: string;
}

/**
 * A connection to the QEMU at `path`: to its own socket when that is free, otherwise through the process that holds
 * it. Rejects with E_QMP_CONNECT when there is no such socket, E_QMP_CLOSED when it is not the wanted one any more,
 * E_BUSY when it serves somebody who does not share, E_QMP_TIMEOUT when QEMU is stopped and answers nobody.
 */
export async function findConnection(path: string, wanted: Wanted): Promise<Found> {
  const begun = Date.now();
  let direct: DirectAttempt | undefined;
  let looked = false;
  try {
    for (let pause = PAUSE_MS; ; pause = Math.min(pause * 1.5, LONGEST_PAUSE_MS)) {
      const identity = identityAt(path, wanted.identity);
      const offered = await throughOffer(path, identity);
      if (offered) return offered;
      if (direct?.identity !== identity || direct.full) {
        direct?.abandon();
        direct = undefined;
      }
      if (Date.now() >= wanted.directAfter) direct ??= new DirectAttempt(path, identity);
      const time = pause * (0.5 + Math.random());
      const qmp = await (direct ? direct.within(time) : sleep(time, undefined));
      if (qmp && identityAt(path, wanted.identity) === identity) {
        direct = undefined;
        return { qmp, identity, shared: undefined };
      }
      const waited = Date.now() - begun;
      if (waited > LOOK_MS && !looked) {
        looked = true;
        const ends = await endsOf(path);
        // One that is stopped may go on.
        const stopped = ends.server !== undefined && isStopped(ends.server);
        if (!stopped && isStranger(ends.client)) throw busyError(path, ends);
      }
      if (waited > PATIENCE_MS) throw busyError(path, await endsOf(path));
    }
  } finally {
    direct?.abandon();
  }
}

function isStranger(client: number | undefined): boolean {
  return client !== undefined && !isKvmi(programOf(client) ?? 'kvmi');
}

function identityAt(path: string, wanted: string | undefined): string {
  let identity: string;
  try {
    identity = identityOf(path);
  } catch (error) {
    throw wanted === undefined ? connectError(path, error as Error) : closedError(path);
  }
  if (wanted !== undefined && identity !== wanted) throw closedError(path);
  return identity;
}

/** Undefined when nobody offers a connection: what a killed process has left does not answer. */
async function throughOffer(path: string, identity: string): Promise<Found | undefined> {
  const offer = offerPath(identity);
  if (offer === undefined) return undefined;
  try {
    const signal = AbortSignal.timeout(PATIENCE_MS);
    const qmp = await UnixQmp.connect(offer, { where: path, signal });
    return { qmp, identity, shared: { holder: qmp.holder ?? 0 } };
  } catch {
    return undefined;
  }
}

/** A place in the queue of QEMU's socket, which serves one after the other. */
class DirectAttempt {
  readonly identity: string;
  readonly #abandoned = new AbortController();
  readonly #connection: Promise<UnixQmp | undefined>;
  #full = false;

  constructor(path: string, identity: string) {
    this.identity = identity;
    this.#connection = this.#connect(path);
    this.#connection.catch(() => {});
  }

  /** The queue was full: there is no place in it. */
  get full(): boolean {
    return this.#full;
  }

  /** The connection, when it is served within a time; rejects when there is nobody who could. */
  async within(timeMs: number): Promise<UnixQmp | undefined> {
    const over = new AbortController();
    const time = sleep(timeMs, undefined, { signal: over.signal }).catch(() => undefined);
    try {
      if (this.#full) return await time;
      return (await Promise.race([this.#connection, time])) ?? (this.#full ? await time : undefined);
    } finally {
      over.abort();
    }
  }

  abandon(): void {
    this.#abandoned.abort();
    this.#connection.then((qmp) => qmp?.close()).catch(() => {});
  }

  async #connect(path: string): Promise<UnixQmp | undefined> {
    try {
      return await UnixQmp.connect(path, { signal: this.#abandoned.signal });
    } catch (error) {
      const { code } = ((error as KvmiError).cause ?? {}) as NodeJS.ErrnoException;
      this.#full = code === 'EAGAIN';
      if (this.#full) return undefined;
      throw error;
    }
  }
}

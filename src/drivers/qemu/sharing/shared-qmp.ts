import { rmSync } from 'node:fs';
import type { Awaitable } from '../../../awaitable.ts';
import { KvmiError } from '../../../error.ts';
import type { QmpTransport } from '../qmp.ts';
import { QmpListeners } from '../qmp-listeners.ts';
import { closedError, type UnixQmp } from '../unix-qmp.ts';
import { heldError } from './busy.ts';
import { type Found, findConnection } from './find.ts';
import { HELD, Offer, YIELD } from './offer.ts';
import { offerPath } from './offer-path.ts';
import { sweepOffers } from './sweep.ts';

/** How often a request is made again, when the process through which it was made has ended. */
const ATTEMPTS = 20;
/** Who has given the connection up lets the other one connect first. */
const COURTESY_MS = 300;

/** How a process shares. */
export interface SharingOptions {
  /** Lets others use this connection while it lasts; yes unless told. */
  readonly offer?: boolean;
  /** Which socket it has to be, see identityOf(): rejects with E_QMP_CLOSED when it is another one. */
  readonly identity?: string;
}

/**
 * A QMP socket, shared by the processes of kvmi that a user runs.
 *
 * The first one that the socket serves is its holder and offers the connection to the others, for what only reads.
 * When the holder ends, one of the others becomes it. Who wants to change the VM has to be the holder: it is given
 * the connection by a holder that only reads.
 */
export class SharedQmp extends QmpListeners implements QmpTransport {
  readonly where: string;
  readonly #identity: string;
  readonly #offers: boolean;
  #connection: Found | undefined;
  #connecting: Promise<Found> | undefined;
  #offer: Offer | undefined;
  #claimed = false;
  /** Not before this time this process connects to QEMU itself. */
  #directAfter = 0;

  /**
   * Connects, to QEMU or to the process that holds its socket. Rejects with E_QMP_CONNECT when the socket cannot be
   * reached, E_BUSY when it serves somebody who does not share.
   */
  static async connect(path: string, { offer = true, identity }: SharingOptions = {}): Promise<SharedQmp> {
    const found = await findConnection(path, { directAfter: 0, ...(identity !== undefined && { identity }) });
    const qmp = new SharedQmp(path, found.identity, offer);
    await qmp.#use(found);
    return qmp;
  }

  private constructor(path: string, identity: string, offers: boolean) {
    super();
    this.where = path;
    this.#identity = identity;
    this.#offers = offers;
  }

  get peer(): number | undefined {
    return this.#connection?.shared ? undefined : this.#connection?.qmp.peer;
  }

  async execute(command: string, args?: Readonly<Record<string, unknown>>): Promise<unknown> {
    for (let attempt = 1; ; attempt++) {
      const { qmp, shared } = await this.#connected();
      try {
        return await qmp.execute(command, args);
      } catch (error) {
        if (shared && qmp.ended && attempt < ATTEMPTS) continue;
        throw shared && isHeld(error) ? heldError(this.where, shared.holder) : error;
      }
    }
  }

  async hmp(line: string, cpuIndex?: number): Promise<string> {
    const args = { 'command-line': line, ...(cpuIndex === undefined ? {} : { 'cpu-index': cpuIndex }) };
    return String(await this.execute('human-monitor-command', args));
  }

  async isServer(pid: number): Promise<boolean> {
    return (await this.#connected()).qmp.isServer(pid);
  }

  claim(): Awaitable<void> {
    if (!this.#claimed) return this.#claim();
  }

  release(): void {
    this.#claimed = false;
  }

  async close(): Promise<void> {
    this.#end(undefined);
    await this.#offer?.close();
    this.#offer = undefined;
    this.#connection?.qmp.close();
  }

  async #claim(): Promise<void> {
    for (let attempt = 1; attempt < ATTEMPTS; attempt++) {
      const found = await this.#connected();
      if (found !== this.#connection) continue;
      if (!found.shared) {
        this.#claimed = true;
        return;
      }
      await this.#askFor(found.qmp, found.shared.holder);
    }
    throw new KvmiError('E_AGAIN', `others took the QMP socket ${this.where} ${ATTEMPTS} times`);
  }

  /** Asks the holder for the connection. */
  async #askFor(qmp: UnixQmp, holder: number): Promise<void> {
    try {
      await qmp.execute(YIELD);
    } catch (error) {
      if (!qmp.ended) throw isHeld(error) ? heldError(this.where, holder) : error;
    }
    await qmp.idle();
    qmp.close();
    this.#directAfter = 0;
  }

  /** The connection in use, or another one when it is gone. */
  async #connected(): Promise<Found> {
    if (this.end) throw this.end.error ?? closedError(this.where);
    if (this.#connection && !this.#connection.qmp.ended) return this.#connection;
    this.#connecting ??= this.#reconnect().finally(() => {
      this.#connecting = undefined;
    });
    return this.#connecting;
  }

  async #reconnect(): Promise<Found> {
    const found = await findConnection(this.where, {
      directAfter: this.#directAfter,
      identity: this.#identity,
    });
    await this.#use(found);
    return found;
  }

  async #use(found: Found): Promise<void> {
    if (this.end) {
      found.qmp.close();
      throw closedError(this.where);
    }
    this.#connection = found;
    if (found.shared) return;
    const { qmp } = found;
    qmp.onEvent((event) => {
      this.tell(event);
    });
    qmp.onClosed((error) => {
      if (this.#connection === found) this.#end(error);
    });
    const offer = await this.#publish(qmp);
    if (this.#connection === found && !this.end) this.#offer = offer;
    else await offer?.close();
  }

  async #publish(qmp: UnixQmp): Promise<Offer | undefined> {
    const path = offerPath(this.#identity);
    if (path === undefined) return undefined;
    const self = this;
    try {
      if (!this.#offers) rmSync(path, { force: true });
      if (!this.#offers) return undefined;
      await sweepOffers();
      return await Offer.publish(path, {
        execute: (command, args) => qmp.execute(command, args),
        server: qmp.server,
        get mayYield() {
          return !self.#claimed;
        },
        yield: () => void this.#yield(qmp),
      });
    } catch {
      // Nobody can share then; this process works all the same.
      return undefined;
    }
  }

  /** What this process asks from now on goes through the next holder. */
  async #yield(qmp: UnixQmp): Promise<void> {
    const offer = this.#offer;
    this.#offer = undefined;
    this.#connection = undefined;
    this.#directAfter = Date.now() + COURTESY_MS;
    await offer?.close();
    await qmp.idle();
    qmp.close();
  }

  #end(error: Error | undefined): void {
    this.finish(error, () => {
      this.#offer?.withdraw();
    });
  }
}

function isHeld(error: unknown): boolean {
  return error instanceof KvmiError && error.code === 'E_QMP_COMMAND' && error.data.class === HELD;
}

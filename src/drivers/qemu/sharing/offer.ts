import { once } from 'node:events';
import { chmodSync, renameSync, rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { KvmiError, messageOf } from '../../../error.ts';
import { LineSplitter, recordOf } from '../qmp.ts';
import { isAllowed } from './allowed.ts';

/** The class of the error that a sharer gets for what only the holder may do. */
export const HELD = 'KvmiHeld';
/** The command by which a sharer asks the holder to give the connection up. */
export const YIELD = 'kvmi-yield';

/** How many may share at once; the next ones are hung up on. */
const SHARERS = 64;
/** No request of a reader is longer. */
const REQUEST_LIMIT = 64 * 1024;
/** How long a sharer may take to read an answer. */
const READ_TIMEOUT_MS = 10_000;
/** How long requests that are being carried out keep the holder from leaving. */
const DRAIN_MS = 2000;

/** What an offer needs of the holder. */
export interface Holder {
  execute(command: string, args?: Readonly<Record<string, unknown>>): Promise<unknown>;
  /** The process at the other end of the connection. */
  readonly server: number | undefined;
  /** Whether the connection can be given up, for somebody who wants to change the VM. */
  readonly mayYield: boolean;
  /** Begins to give the connection up: closes the offer, and then the connection. */
  yield(): void;
}

/**
 * QEMU's monitor for other processes of this user: a QMP socket that carries out what only reads, one request after
 * the other, through the connection of the process that holds QEMU's own socket.
 */
export class Offer {
  readonly #path: string;
  readonly #holder: Holder;
  readonly #server: Server;
  readonly #sharers = new Set<Socket>();
  /** The last request, carried out or not. */
  #turn: Promise<unknown> = Promise.resolve();
  #closed = false;

  /**
   * Offers the connection at `path`, in place of what a holder that was killed has left there. To be called by
   * the process that QEMU's socket serves, which is one at a time: so nobody else is there.
   */
  static async publish(path: string, holder: Holder): Promise<Offer> {
    const offer = new Offer(path, holder);
    const unpublished = `${path}.${process.pid}`;
    rmSync(unpublished, { force: true });
    offer.#server.listen(unpublished);
    await once(offer.#server, 'listening');
    chmodSync(unpublished, 0o600);
    renameSync(unpublished, path);
    return offer;
  }

  private constructor(path: string, holder: Holder) {
    this.#path = path;
    this.#holder = holder;
    this.#server = createServer((socket) => void this.#serve(socket));
    this.#server.on('error', () => {});
    this.#server.maxConnections = SHARERS;
    // An offer keeps nobody from ending.
    this.#server.unref();
  }

  /** Answers what is being carried out, and hangs up. To be called while QEMU's socket still serves this process. */
  async close(): Promise<void> {
    this.withdraw();
    let timer: NodeJS.Timeout | undefined;
    const overdue = new Promise((resolve) => {
      timer = setTimeout(resolve, DRAIN_MS);
    });
    await Promise.race([this.#turn, overdue]);
    clearTimeout(timer);
    // The last answer is written first.
    await new Promise(setImmediate);
    for (const socket of this.#sharers) socket.destroySoon();
  }

  /** Lets nobody else in. */
  withdraw(): void {
    if (this.#closed) return;
    this.#closed = true;
    rmSync(this.#path, { force: true });
    this.#server.close();
  }

  async #serve(socket: Socket): Promise<void> {
    socket.unref();
    socket.on('error', () => {});
    this.#sharers.add(socket);
    try {
      const lines = new LineSplitter(REQUEST_LIMIT);
      await send(socket, {
        QMP: { version: {}, capabilities: [] },
        kvmi: { pid: process.pid, server: this.#holder.server },
      });
      for await (const chunk of socket) {
        for (const line of lines.push(chunk as Buffer)) {
          if (line === '') continue;
          const reply = await this.#reply(line);
          if (reply === undefined) return;
          await send(socket, reply);
        }
      }
    } catch {
      // A sharer that does not keep to the protocol, or does not read, has lost its place.
    } finally {
      this.#sharers.delete(socket);
      socket.destroy();
    }
  }

  async #reply(line: string): Promise<Reply | undefined> {
    const { execute, arguments: args = {}, id } = recordOf(JSON.parse(line), 'a request');
    if (typeof execute !== 'string') throw new KvmiError('E_QMP_PROTOCOL', 'a request has no command');
    const given = recordOf(args, 'the arguments of a request');
    if (execute === 'qmp_capabilities') return { id, return: {} };
    if (execute === YIELD) return this.#yield(id);
    if (!isAllowed(execute, given)) return { id, error: { class: HELD, desc: `${execute} is not shared` } };
    return this.#inTurn(() => this.#execute(id, execute, given));
  }

  /** Undefined when there is nobody any more who could answer. */
  async #execute(
    id: unknown,
    command: string,
    args: Readonly<Record<string, unknown>>,
  ): Promise<Reply | undefined> {
    if (this.#closed) return undefined;
    try {
      return { id, return: await this.#holder.execute(command, args) };
    } catch (error) {
      const { code, data } = error as Partial<KvmiError>;
      if (code === 'E_QMP_COMMAND') return { id, error: { class: data?.class, desc: data?.text } };
      if (code === 'E_QMP_TIMEOUT') return { id, error: { class: code, desc: messageOf(error) } };
      return undefined;
    }
  }

  #yield(id: unknown): Reply {
    if (!this.#holder.mayYield) return { id, error: { class: HELD, desc: 'the VM is held' } };
    this.#holder.yield();
    return { id, return: {} };
  }

  /** One at a time: what the holder itself asks waits for one of them at most. */
  #inTurn<T>(run: () => Promise<T>): Promise<T> {
    const result = this.#turn.then(run);
    this.#turn = result;
    return result;
  }
}

interface Reply {
  readonly id: unknown;
  readonly return?: unknown;
  readonly error?: { readonly class: unknown; readonly desc: unknown };
}

/** Sends a message; done when the other end has room for the next one. */
async function send(socket: Socket, message: object): Promise<void> {
  if (socket.write(`${JSON.stringify(message)}\n`)) return;
  await once(socket, 'drain', { signal: AbortSignal.timeout(READ_TIMEOUT_MS) });
}

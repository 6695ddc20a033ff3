import { connect, type Socket } from 'node:net';
import { resolve } from 'node:path';
import { KvmiError, messageOf } from '../../error.ts';
import { peerOf } from '../../system/peer.ts';
import { listensOn } from '../../system/proc.ts';
import { isQemu } from './process.ts';
import {
  LineSplitter,
  parseQmpMessage,
  QMP_TIMEOUT_MS,
  type QmpConnection,
  type QmpHolder,
  type QmpMessage,
  qmpCommandError,
} from './qmp.ts';
import { QmpListeners } from './qmp-listeners.ts';

/** How a connection is made. */
export interface UnixQmpOptions {
  /** For messages: what is behind the socket, the socket itself if not given. */
  readonly where?: string;
  /** Gives up waiting for the greeting, which a socket that somebody else uses does not send. */
  readonly signal?: AbortSignal;
}

interface Pending {
  readonly command: string;
  readonly timer: NodeJS.Timeout;
  resolve(value: unknown): void;
  reject(error: Error): void;
}

/** QMP on a Unix socket. QEMU's serves one client at a time, and greets it when its turn comes. */
export class UnixQmp extends QmpListeners implements QmpConnection {
  readonly where: string;
  readonly #socket: Socket;
  readonly #lines = new LineSplitter();
  readonly #pending = new Map<number, Pending>();
  #nextId = 1;
  #greeted: (() => void) | undefined;
  #holder: QmpHolder | undefined;
  /** Who waits until no command waits. */
  readonly #idlers: (() => void)[] = [];

  /** Connects and negotiates. Rejects with E_QMP_CONNECT when the socket cannot be reached. */
  static async connect(path: string, { where = path, signal }: UnixQmpOptions = {}): Promise<UnixQmp> {
    const qmp = new UnixQmp(where, connect(path));
    const giveUp = () => qmp.close();
    signal?.addEventListener('abort', giveUp);
    try {
      await qmp.#greeting();
      await qmp.execute('qmp_capabilities');
    } catch (error) {
      qmp.close();
      throw error;
    } finally {
      signal?.removeEventListener('abort', giveUp);
    }
    return qmp;
  }

  private constructor(where: string, socket: Socket) {
    super();
    this.where = where;
    this.#socket = socket;
    socket.on('data', (chunk) => this.#receive(chunk));
    let connected = false;
    socket.on('connect', () => {
      connected = true;
    });
    socket.on('error', (cause) => this.#end(connected ? closedError(where) : connectError(where, cause)));
    socket.on('close', () => this.#end(closedError(where)));
  }

  /** The process that shares its connection, as it says in its greeting. */
  get holder(): number | undefined {
    return this.#holder?.pid;
  }

  /** The process that listens on QEMU's socket: as the kernel has it, or as the one that shares its connection was told. */
  get server(): number | undefined {
    return this.#holder ? this.#holder.server : peerOf(this.#socket);
  }

  /** A socket that another program has made for QEMU is known by its path. */
  isServer(pid: number): boolean {
    const { server } = this;
    if (server === pid) return true;
    return (server === undefined || !isQemu(server)) && listensOn(pid, resolve(this.where));
  }

  /** The process at the other end, where the kernel tells. */
  get peer(): number | undefined {
    return peerOf(this.#socket);
  }

  /** Whether the connection has ended. */
  get ended(): boolean {
    return this.end !== undefined;
  }

  /** Resolves when no command waits for its answer. */
  idle(): Promise<void> {
    if (this.#pending.size === 0) return Promise.resolve();
    return new Promise((resolve) => {
      this.#idlers.push(resolve);
    });
  }

  execute(command: string, args?: Readonly<Record<string, unknown>>): Promise<unknown> {
    if (this.end) return Promise.reject(this.end.error ?? closedError(this.where));
    const id = this.#nextId++;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#forget(id);
        reject(timeoutError(command, this.where));
      }, QMP_TIMEOUT_MS);
      this.#pending.set(id, { command, timer, resolve, reject });
      this.#socket.write(`${JSON.stringify({ execute: command, arguments: args, id })}\n`);
    });
  }

  async hmp(line: string, cpuIndex?: number): Promise<string> {
    const args = { 'command-line': line, ...(cpuIndex === undefined ? {} : { 'cpu-index': cpuIndex }) };
    return String(await this.execute('human-monitor-command', args));
  }

  close(): void {
    this.#end(undefined);
    this.#socket.destroy();
  }

  #greeting(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#greeted = resolve;
      this.onClosed((error) => reject(error ?? closedError(this.where)));
    });
  }

  #receive(chunk: Buffer): void {
    try {
      for (const line of this.#lines.push(chunk)) {
        if (line !== '') this.#dispatch(parseQmpMessage(line));
      }
    } catch (error) {
      this.#end(error instanceof Error ? error : new Error(messageOf(error)));
      this.#socket.destroy();
    }
  }

  #dispatch(message: QmpMessage): void {
    if (message.kind === 'greeting') {
      this.#holder = message.holder;
      this.#greeted?.();
      return;
    }
    if (message.kind === 'event') {
      this.tell(message.event);
      return;
    }
    const pending = this.#pending.get(message.id as number);
    if (!pending) return;
    this.#forget(message.id as number);
    clearTimeout(pending.timer);
    if (message.kind === 'return') pending.resolve(message.value);
    else pending.reject(qmpCommandError(pending.command, message.errorClass, message.text, this.where));
  }

  #forget(id: number): void {
    this.#pending.delete(id);
    if (this.#pending.size === 0) for (const resolve of this.#idlers.splice(0)) resolve();
  }

  #end(error: Error | undefined): void {
    this.finish(error, () => {
      for (const { timer, reject } of this.#pending.values()) {
        clearTimeout(timer);
        reject(error ?? closedError(this.where));
      }
      this.#pending.clear();
      for (const resolve of this.#idlers.splice(0)) resolve();
    });
  }
}

export function connectError(path: string, cause: Error): KvmiError {
  return new KvmiError('E_QMP_CONNECT', `no connection to the QMP socket ${path}: ${cause.message}`, {
    hint: 'Start QEMU with -qmp unix:PATH,server=on,wait=off, and run as its user or as root.',
    data: { path },
    cause,
  });
}

/** QEMU has ended, as far as the other end of its monitor can tell. */
export function closedError(path: string): KvmiError {
  return new KvmiError('E_QMP_CLOSED', `the connection to QEMU at ${path} is closed: QEMU has ended`, {
    data: { path },
  });
}

function timeoutError(command: string, path: string): KvmiError {
  const text = `QEMU at ${path} did not answer ${command} within ${QMP_TIMEOUT_MS} ms`;
  return new KvmiError('E_QMP_TIMEOUT', text, { data: { command, path } });
}

import { connect, type Socket } from 'node:net';
import { KvmiError, messageOf } from '../../error.ts';
import {
  LineSplitter,
  parseQmpMessage,
  QMP_TIMEOUT_MS,
  type QmpEvent,
  type QmpMessage,
  type QmpTransport,
  qmpCommandError,
} from './qmp.ts';

/** A QMP socket that somebody else uses accepts a connection but never greets. */
const GREETING_TIMEOUT_MS = 1500;

interface Pending {
  readonly command: string;
  readonly timer: NodeJS.Timeout;
  resolve(value: unknown): void;
  reject(error: Error): void;
}

/** QMP on a unix socket of its own. A QMP socket serves one client at a time. */
export class UnixQmp implements QmpTransport {
  readonly where: string;
  readonly #socket: Socket;
  readonly #lines = new LineSplitter();
  readonly #pending = new Map<number, Pending>();
  readonly #eventListeners = new Set<(event: QmpEvent) => void>();
  readonly #closedListeners = new Set<(error?: Error) => void>();
  #nextId = 1;
  #greeted: (() => void) | undefined;
  #ended: { readonly error: Error | undefined } | undefined;

  /**
   * Connects and negotiates. Errors: E_QMP_CONNECT when the socket cannot be reached, E_BUSY when it does
   * not greet because another client has it.
   */
  static async connect(path: string): Promise<UnixQmp> {
    const socket = connect(path);
    const qmp = new UnixQmp(path, socket);
    try {
      await qmp.#greeting();
      await qmp.execute('qmp_capabilities');
    } catch (error) {
      qmp.close();
      throw error;
    }
    return qmp;
  }

  private constructor(path: string, socket: Socket) {
    this.where = path;
    this.#socket = socket;
    socket.on('data', (chunk) => this.#receive(chunk));
    socket.on('error', (cause) => this.#end(connectError(path, cause)));
    socket.on('close', () => this.#end(closedError(path)));
  }

  execute(command: string, args?: Readonly<Record<string, unknown>>): Promise<unknown> {
    if (this.#ended) return Promise.reject(this.#ended.error ?? closedError(this.where));
    const id = this.#nextId++;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#pending.delete(id);
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

  onEvent(listener: (event: QmpEvent) => void): () => void {
    this.#eventListeners.add(listener);
    return () => this.#eventListeners.delete(listener);
  }

  onClosed(listener: (error?: Error) => void): void {
    if (this.#ended) queueMicrotask(() => listener(this.#ended?.error));
    else this.#closedListeners.add(listener);
  }

  close(): void {
    this.#end(undefined);
    this.#socket.destroy();
  }

  #greeting(): Promise<void> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(busyError(this.where)), GREETING_TIMEOUT_MS);
      this.#greeted = () => {
        clearTimeout(timer);
        resolve();
      };
      this.onClosed((error) => {
        clearTimeout(timer);
        reject(error ?? closedError(this.where));
      });
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
      this.#greeted?.();
      return;
    }
    if (message.kind === 'event') {
      for (const listener of this.#eventListeners) listener(message.event);
      return;
    }
    const pending = this.#pending.get(message.id as number);
    if (!pending) return;
    this.#pending.delete(message.id as number);
    clearTimeout(pending.timer);
    if (message.kind === 'return') pending.resolve(message.value);
    else pending.reject(qmpCommandError(pending.command, message.errorClass, message.text, this.where));
  }

  #end(error: Error | undefined): void {
    if (this.#ended) return;
    this.#ended = { error };
    for (const { timer, reject } of this.#pending.values()) {
      clearTimeout(timer);
      reject(error ?? closedError(this.where));
    }
    this.#pending.clear();
    for (const listener of this.#closedListeners) listener(error);
    this.#closedListeners.clear();
  }
}

function connectError(path: string, cause: Error): KvmiError {
  return new KvmiError('E_QMP_CONNECT', `no connection to the QMP socket ${path}: ${cause.message}`, {
    hint: 'Start QEMU with -qmp unix:PATH,server=on,wait=off, and run as its user or as root.',
    data: { path },
    cause,
  });
}

function busyError(path: string): KvmiError {
  return new KvmiError('E_BUSY', `the QMP socket ${path} is in use: it does not greet`, {
    hint: 'A QMP socket serves one client. Close the other one, or give QEMU a second -qmp unix:PATH,server=on,wait=off.',
    data: { path },
  });
}

function closedError(path: string): KvmiError {
  return new KvmiError('E_QMP_CLOSED', `the connection to QEMU at ${path} is closed: QEMU has ended`, {
    data: { path },
  });
}

function timeoutError(command: string, path: string): KvmiError {
  const text = `QEMU at ${path} did not answer ${command} within ${QMP_TIMEOUT_MS} ms`;
  return new KvmiError('E_QMP_TIMEOUT', text, { data: { command, path } });
}

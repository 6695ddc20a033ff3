import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import type { Awaitable } from '../../awaitable.ts';
import { KvmiError } from '../../error.ts';
import {
  LineSplitter,
  parseQmpMessage,
  QMP_TIMEOUT_MS,
  type QmpEvent,
  type QmpTransport,
  qmpCommandError,
  recordOf,
} from './qmp.ts';
import { findFreeStub } from './stub.ts';

/** A command that waits for its answer, or for its turn. */
interface Pending {
  readonly line: string;
  readonly what: string;
  resolve(output: string): void;
  reject(error: Error): void;
}

const EVENT = /^event (\S+) .*?: (.*)$/;
/** virsh prints its prompt, and what it reads, even without a terminal. */
const ANSWER = /^\{.*\}$/;

/**
 * The monitor of a libvirt domain, through `virsh qemu-monitor-command`. libvirt keeps the QMP socket for itself and
 * passes commands on. One virsh serves all commands, a second one reports the events.
 */
export class VirshQmp implements QmpTransport {
  readonly where: string;
  readonly peer = undefined;
  readonly #domain: string;
  readonly #shell: ChildProcessWithoutNullStreams;
  readonly #events: ChildProcessWithoutNullStreams;
  readonly #pending: Pending[] = [];
  readonly #eventListeners = new Set<(event: QmpEvent) => void>();
  readonly #closedListeners = new Set<(error?: Error) => void>();
  #timer: NodeJS.Timeout | undefined;
  #lastError = '';
  #claimed = false;
  #ended: { readonly error: Error | undefined } | undefined;

  /** `uri` is virsh's connection URI; without it virsh chooses. E_LIBVIRT when the domain cannot be reached. */
  static async connect(domain: string, uri?: string): Promise<VirshQmp> {
    const qmp = new VirshQmp(domain, uri);
    try {
      await qmp.execute('query-status');
    } catch (error) {
      qmp.close();
      throw error;
    }
    return qmp;
  }

  private constructor(domain: string, uri: string | undefined) {
    this.where = `libvirt domain ${domain}`;
    this.#domain = domain;
    const options = uri === undefined ? ['-q'] : ['-q', '-c', uri];
    this.#shell = this.#spawn(options, (line) => {
      if (ANSWER.test(line)) this.#settle((pending) => pending.resolve(line));
    });
    const watch = [...options, 'qemu-monitor-event', '--loop', '--domain', domain];
    this.#events = this.#spawn(watch, (line) => this.#event(line));
    const errors = new LineSplitter();
    this.#shell.stderr.on('data', (chunk: Buffer) => {
      for (const line of errors.push(chunk)) this.#error(line);
    });
  }

  async execute(command: string, args?: Readonly<Record<string, unknown>>): Promise<unknown> {
    const json = JSON.stringify({ execute: command, arguments: args });
    // Between single quotes virsh knows no escapes.
    const output = await this.#run(
      `qemu-monitor-command '${quoted(this.#domain)}' '${json.replaceAll("'", '\\u0027')}'`,
      command,
    );
    const message = parseQmpMessage(output);
    if (message.kind === 'return') return message.value;
    if (message.kind === 'error')
      throw qmpCommandError(command, message.errorClass, message.text, this.where);
    throw new KvmiError(
      'E_QMP_PROTOCOL',
      `${this.where} answered ${command} with neither a result nor an error`,
    );
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

  /** libvirt lets everybody in; the gdbstub is what only one can have. */
  claim(): Awaitable<void> {
    if (!this.#claimed) return this.#claim();
  }

  release(): void {
    this.#claimed = false;
  }

  close(): void {
    this.#end(undefined);
  }

  async #claim(): Promise<void> {
    await findFreeStub(this);
    this.#claimed = true;
  }

  #spawn(args: readonly string[], onLine: (line: string) => void): ChildProcessWithoutNullStreams {
    const child = spawn('virsh', args, { stdio: 'pipe' });
    const lines = new LineSplitter();
    child.stdout.on('data', (chunk: Buffer) => {
      try {
        for (const line of lines.push(chunk)) onLine(line);
      } catch (error) {
        this.#end(error as Error);
      }
    });
    child.stdin.on('error', () => {});
    child.on('error', (cause) => this.#end(this.#failure(`virsh does not start: ${cause.message}`)));
    child.on('exit', () => this.#end(this.#failure(this.#lastError || 'virsh has ended')));
    return child;
  }

  #run(line: string, what: string): Promise<string> {
    if (this.#ended) return Promise.reject(this.#ended.error ?? this.#failure('the connection is closed'));
    return new Promise((resolve, reject) => {
      this.#pending.push({ line, what, resolve, reject });
      if (this.#pending.length === 1) this.#next();
    });
  }

  /** Answers and errors come on two streams: one command at a time keeps them together. */
  #next(): void {
    const pending = this.#pending[0];
    if (!pending) return;
    this.#timer = setTimeout(() => {
      this.#end(this.#failure(`no answer to ${pending.what} within ${QMP_TIMEOUT_MS} ms`));
    }, QMP_TIMEOUT_MS);
    this.#shell.stdin.write(`${pending.line}\n`);
  }

  #settle(how: (pending: Pending) => void): void {
    const pending = this.#pending.shift();
    if (!pending) return;
    clearTimeout(this.#timer);
    how(pending);
    this.#next();
  }

  #error(line: string): void {
    if (!line.startsWith('error: ')) return;
    this.#lastError = line.slice('error: '.length);
    this.#settle((pending) => pending.reject(this.#failure(this.#lastError)));
  }

  #event(line: string): void {
    const match = EVENT.exec(line);
    if (match === null) return;
    const data = match[2]!.startsWith('{') ? recordOf(JSON.parse(match[2]!), 'the data of an event') : {};
    for (const listener of this.#eventListeners) listener({ name: match[1]!, data });
    if (match[1] === 'SHUTDOWN') this.#endSoon();
  }

  /** After SHUTDOWN QEMU ends; libvirt tells nobody who only listens to the monitor. */
  #endSoon(): void {
    this.execute('query-status').then(
      () => setTimeout(() => this.#endSoon(), 100).unref(),
      () => this.#end(this.#failure('QEMU has ended')),
    );
  }

  #failure(text: string): KvmiError {
    return new KvmiError('E_LIBVIRT', `${this.where}: ${text}`, {
      hint: "See `virsh list`; libvirt's connection is chosen by LIBVIRT_DEFAULT_URI.",
      data: { domain: this.#domain },
    });
  }

  #end(error: Error | undefined): void {
    if (this.#ended) return;
    this.#ended = { error };
    this.#shell.kill();
    this.#events.kill();
    clearTimeout(this.#timer);
    for (const { reject } of this.#pending.splice(0)) {
      reject(error ?? this.#failure('the connection was closed'));
    }
    for (const listener of this.#closedListeners) listener(error);
    this.#closedListeners.clear();
  }
}

/** Names with quotes cannot be passed. */
function quoted(name: string): string {
  if (!name.includes("'")) return name;
  throw new KvmiError('E_LIBVIRT', `the libvirt domain ${name} has a quote in its name: use its UUID`);
}

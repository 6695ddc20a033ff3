import type { ChildProcessWithoutNullStreams } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Awaitable } from '../../awaitable.ts';
import { KvmiError } from '../../error.ts';
import { commandLine } from '../../system/proc.ts';
import { parseQemuArguments } from '../../system/qemu-arguments.ts';
import { LineSplitter, parseQmpMessage, type QmpTransport, qmpCommandError, recordOf } from './qmp.ts';
import { QmpListeners } from './qmp-listeners.ts';
import { findFreeStub } from './stub.ts';
import { closedError } from './unix-qmp.ts';
import { isDisconnection, spawnVirsh } from './virsh.ts';
import { VirshShell } from './virsh-shell.ts';

const EVENT = /^event (\S+) .*?: (.*)$/;
const JSON_ANSWER = /^\{.*\}$/;
const UUID_ANSWER = /^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;
/** `-` for a domain that does not run. */
const ID_ANSWER = /^(?:\d+|-)$/;
/** How long libvirt's daemon may take to come back, and then to know its domains, while it is tried again and again. */
const RECONNECT_MS = 30_000;
const RECONNECT_PAUSE_MS = 200;

/**
 * The monitor of a libvirt domain, through `virsh qemu-monitor-command`. libvirt keeps the QMP socket for itself and
 * passes commands on. One virsh serves all commands, a second one reports the events. When libvirt's daemon is started
 * anew, so are they: commands wait for that.
 */
export class VirshQmp extends QmpListeners implements QmpTransport {
  readonly where: string;
  readonly peer = undefined;
  readonly #domain: string;
  readonly #options: readonly string[];
  #shell: VirshShell;
  #events: ChildProcessWithoutNullStreams | undefined;
  /** Which run of the domain this is: libvirt gives a number to each. */
  #instance: { readonly uuid: string; readonly id: string } | undefined;
  #reconnecting: Promise<void> | undefined;
  #claimed = false;
  /** When libvirt's daemon was seen to be gone last. */
  #disconnected = 0;

  /**
   * `uri` is virsh's connection URI; without it virsh chooses. E_NO_MACHINE when there is no such domain or it does not
   * run, E_PERMISSION when libvirt does not let this user in, E_LIBVIRT when libvirt cannot be reached.
   */
  static async connect(domain: string, uri?: string): Promise<VirshQmp> {
    const qmp = new VirshQmp(domain, uri);
    try {
      qmp.#instance = await qmp.#findInstance(domain);
      qmp.#watch();
      await qmp.execute('query-status');
    } catch (error) {
      qmp.close();
      throw error;
    }
    return qmp;
  }

  private constructor(domain: string, uri: string | undefined) {
    super();
    this.where = `libvirt domain ${domain}`;
    this.#domain = domain;
    this.#options = uri === undefined ? ['-q'] : ['-q', '-c', uri];
    this.#shell = new VirshShell(domain, this.#options);
  }

  async execute(command: string, args?: Readonly<Record<string, unknown>>): Promise<unknown> {
    const json = JSON.stringify({ execute: command, arguments: args });
    // Between single quotes virsh knows no escapes.
    const line = `qemu-monitor-command '${this.#instance!.uuid}' '${json.replaceAll("'", '\\u0027')}'`;
    const message = parseQmpMessage(await this.#run(line, command));
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

  /** libvirt starts each QEMU with the UUID of its domain, and says which that is. */
  isServer(pid: number): boolean {
    const { uuid, libvirt } = parseQemuArguments(commandLine(pid).slice(1));
    return libvirt && uuid?.toLowerCase() === this.#instance?.uuid;
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

  /** Runs a command about the domain; again when libvirt's daemon was gone meanwhile. */
  async #run(line: string, what: string): Promise<string> {
    const deadline = Date.now() + RECONNECT_MS;
    for (let first = true; ; first = false) {
      if (this.end) throw this.end.error ?? closedError(this.where);
      try {
        if (!first || this.#shell.ended) {
          this.#reconnecting ??= this.#reconnect().finally(() => {
            this.#reconnecting = undefined;
          });
          await this.#reconnecting;
        }
        return await this.#shell.run(line, what, JSON_ANSWER);
      } catch (error) {
        if (isDisconnection(error)) this.#disconnected = Date.now();
        const settling = Date.now() - this.#disconnected < RECONNECT_MS;
        if (isEnd(error) && !settling) this.#end(closedError(this.where));
        const mayHeal = isDisconnection(error) || (isEnd(error) && settling);
        if (!mayHeal || Date.now() > deadline) throw error;
        await sleep(RECONNECT_PAUSE_MS);
      }
    }
  }

  /** Throws E_QMP_CLOSED when the domain has ended meanwhile, whether or not it was started again. */
  async #reconnect(): Promise<void> {
    const { uuid, id } = this.#instance!;
    // One whose connection is dead does not always notice.
    this.#shell.close();
    this.#shell = new VirshShell(this.#domain, this.#options);
    const now = await this.#findInstance(uuid);
    if (now.id === id) return;
    this.#end(closedError(this.where));
    throw closedError(this.where);
  }

  async #findInstance(domain: string): Promise<{ readonly uuid: string; readonly id: string }> {
    const name = quoted(domain);
    const uuid = await this.#shell.run(`domuuid '${name}'`, 'domuuid', UUID_ANSWER);
    const id = await this.#shell.run(`domid '${uuid}'`, 'domid', ID_ANSWER);
    if (id !== '-') return { uuid, id };
    throw new KvmiError('E_NO_MACHINE', `${this.where} does not run`, { data: { domain: this.#domain } });
  }

  /** Listens to the domain's events; when virsh ends, as it does with libvirt's daemon, again. */
  #watch(): void {
    if (this.end) return;
    const args = [...this.#options, 'qemu-monitor-event', '--loop', '--domain', this.#instance!.uuid];
    const child = spawnVirsh(args, true);
    this.#events = child;
    const lines = new LineSplitter();
    child.stdout.on('data', (chunk: Buffer) => {
      try {
        for (const line of lines.push(chunk)) this.#event(line);
      } catch (error) {
        this.#end(error as Error);
      }
    });
    child.on('error', () => {});
    child.on('exit', () => void this.#watchAgain());
  }

  async #watchAgain(): Promise<void> {
    await sleep(RECONNECT_PAUSE_MS, undefined, { ref: false });
    try {
      await this.execute('query-status');
      this.#watch();
    } catch {
      // The domain has ended, or the next command says what is wrong.
    }
  }

  #event(line: string): void {
    const match = EVENT.exec(line);
    if (match === null) return;
    const data = match[2]!.startsWith('{') ? recordOf(JSON.parse(match[2]!), 'the data of an event') : {};
    this.tell({ name: match[1]!, data });
    if (match[1] === 'SHUTDOWN') this.#endSoon();
  }

  /** After SHUTDOWN QEMU ends; libvirt tells nobody who only listens to the monitor. */
  #endSoon(): void {
    this.execute('query-status').then(
      () => setTimeout(() => this.#endSoon(), 100).unref(),
      () => this.#end(closedError(this.where)),
    );
  }

  #end(error: Error | undefined): void {
    this.finish(error, () => {
      this.#events?.kill('SIGKILL');
      this.#shell.close(error ?? closedError(this.where));
    });
  }
}

/** libvirt does not know the domain any more, or it does not run. */
function isEnd(error: unknown): boolean {
  return error instanceof KvmiError && error.code === 'E_NO_MACHINE';
}

/** Names with quotes cannot be passed. */
function quoted(name: string): string {
  if (!name.includes("'") && !name.includes('\n')) return name;
  throw new KvmiError(
    'E_LIBVIRT',
    `the libvirt domain ${JSON.stringify(name)} has a quote in its name: use its UUID`,
  );
}

import type { ChildProcessWithoutNullStreams } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Awaitable } from '../../awaitable.ts';
import { KvmiError } from '../../error.ts';
import { commandLine, identityOf, lives, type ProcessIdentity, processes } from '../../system/proc.ts';
import { parseQemuArguments } from '../../system/qemu-arguments.ts';
import { journals, keeperOf } from './guard/journal.ts';
import {
  EVENTS_MISSED,
  LineSplitter,
  parseQmpMessage,
  QMP_TIMEOUT_MS,
  type QmpTransport,
  qmpCommandError,
  recordOf,
} from './qmp.ts';
import { QmpListeners } from './qmp-listeners.ts';
import { heldError } from './sharing/busy.ts';
import { findFreeStub } from './stub.ts';
import { closedError } from './unix-qmp.ts';
import { fateOf, isDisconnection, spawnVirsh } from './virsh.ts';
import { VirshShell } from './virsh-shell.ts';

const EVENT = /^event (\S+) .*?: (.*)$/;
const JSON_ANSWER = /^\{.*\}$/;
const UUID_ANSWER = /^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;
/** `-` for a domain that does not run. */
const ID_ANSWER = /^(?:\d+|-)$/;
const STATE_ANSWER = /^[a-z ]+ \([a-z ]+\)$/;
/** How long libvirt's daemon may take to come back, and then to know its domains, while it is tried again and again. */
const RECONNECT_MS = 60_000;
const RECONNECT_PAUSE_MS = 200;
/** How often it is said that events may have been missed, until one comes. */
const MISSED_PAUSE_MS = 1000;
/** How long it is waited for libvirt to say what became of a domain. */
const FATE_MS = 5000;
const FATE_PAUSE_MS = 100;

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
  /** The domain's QEMU, where it is a process of this host. */
  #process: ProcessIdentity | undefined;
  #reconnecting: Promise<void> | undefined;
  #claimed = false;
  /** When libvirt's daemon was seen to be gone last. */
  #disconnected = 0;
  /** Runs until an event tells that virsh listens. */
  #unheard: NodeJS.Timeout | undefined;

  /**
   * `uri` is virsh's connection URI; without it virsh chooses. E_NO_MACHINE when there is no such domain or it does not
   * run, E_PERMISSION when libvirt does not let this user in, E_LIBVIRT when libvirt cannot be reached.
   */
  static async connect(domain: string, uri?: string): Promise<VirshQmp> {
    const qmp = new VirshQmp(domain, uri);
    try {
      qmp.#instance = await qmp.#findInstance(domain);
      qmp.#process = identityOf(processes().find((pid) => qmp.isServer(pid)) ?? 0);
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

  /** It is asked again while libvirt has not noticed yet. */
  async fate(): Promise<KvmiError | undefined> {
    const shell = new VirshShell(this.#domain, this.#options);
    const overdue = setTimeout(() => shell.close(), FATE_MS);
    try {
      for (;;) {
        const fate = await this.#fateNow(shell);
        if (fate !== undefined) return endedError(this.where, fate);
        await sleep(FATE_PAUSE_MS);
      }
    } catch {
      return undefined;
    } finally {
      clearTimeout(overdue);
      shell.close();
    }
  }

  async #fateNow(shell: VirshShell): Promise<string | undefined> {
    const { uuid, id } = this.#instance!;
    try {
      const fate = fateOf(await shell.run(`domstate --reason '${uuid}'`, 'domstate', STATE_ANSWER));
      if (fate !== undefined) return fate;
      const now = await shell.run(`domid '${uuid}'`, 'domid', ID_ANSWER);
      return now === id || now === '-' ? undefined : 'has ended, and was started anew';
    } catch (error) {
      if (!isEnd(error)) throw error;
      return this.#mayLive ? undefined : 'has ended: libvirt does not know it any more';
    }
  }

  async #claim(): Promise<void> {
    try {
      await findFreeStub(this);
    } catch (error) {
      const holder = this.#holder;
      throw holder === undefined ? error : heldError(this.where, holder);
    }
    this.#claimed = true;
  }

  /** The process of this user that holds the domain, as its journal says. */
  get #holder(): number | undefined {
    const journal = [...journals().values()].find(
      ({ vm }) => vm.pid !== null && vm.pid === this.#process?.pid,
    );
    return journal && keeperOf(journal)?.pid;
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
        return await this.#shell.run(line, what, JSON_ANSWER, this.#timeout);
      } catch (error) {
        if (isDisconnection(error)) this.#disconnected = Date.now();
        const gone = isEnd(error) || isDisconnection(error);
        if (gone && !this.#mayLive) this.#end(closedError(this.where));
        if (!gone || Date.now() > deadline) throw error;
        await sleep(RECONNECT_PAUSE_MS);
      }
    }
  }

  /** What is armed waits for a daemon that stands still as for one that is started anew. */
  get #timeout(): number {
    return this.#claimed ? RECONNECT_MS : QMP_TIMEOUT_MS;
  }

  /** A daemon that has just come back does not know its domains yet. */
  get #mayLive(): boolean {
    return this.#process ? lives(this.#process) : Date.now() - this.#disconnected < RECONNECT_MS;
  }

  /** Throws E_QMP_CLOSED when the domain has ended meanwhile, whether or not it was started again. */
  async #reconnect(): Promise<void> {
    const { uuid, id } = this.#instance!;
    // One whose connection is dead does not always notice.
    this.#shell.close();
    this.#shell = new VirshShell(this.#domain, this.#options);
    if ((await this.#findId(uuid)) === id) return;
    this.#end(closedError(this.where));
    throw closedError(this.where);
  }

  /** `domuuid` knows domains by name and number only. */
  async #findInstance(domain: string): Promise<{ readonly uuid: string; readonly id: string }> {
    const given = domain.toLowerCase();
    const uuid = UUID_ANSWER.test(given)
      ? given
      : await this.#shell.run(`domuuid '${quoted(domain)}'`, 'domuuid', UUID_ANSWER);
    return { uuid, id: await this.#findId(uuid) };
  }

  async #findId(uuid: string): Promise<string> {
    const id = await this.#shell.run(`domid '${uuid}'`, 'domid', ID_ANSWER);
    if (id !== '-') return id;
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
    this.#missEvents();
  }

  /** As long as the domain may live. */
  async #watchAgain(): Promise<void> {
    for (let pause = RECONNECT_PAUSE_MS; !this.end; pause = Math.min(pause * 1.5, RECONNECT_MS)) {
      await sleep(pause, undefined, { ref: false });
      try {
        await this.execute('query-status');
        return this.#watch();
      } catch {
        // The domain has ended, or the next command says what is wrong.
      }
    }
  }

  /** virsh does not say from when on it listens: an event does. */
  #missEvents(): void {
    clearTimeout(this.#unheard);
    if (this.end) return;
    this.#unheard = setTimeout(() => this.#missEvents(), MISSED_PAUSE_MS).unref();
    this.tell({ name: EVENTS_MISSED, data: {} });
  }

  #event(line: string): void {
    const match = EVENT.exec(line);
    if (match === null) return;
    clearTimeout(this.#unheard);
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
    clearTimeout(this.#unheard);
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

/** `fate`: what became of the domain, as libvirt says. */
function endedError(where: string, fate: string): KvmiError {
  return new KvmiError('E_GONE', `${where} ${fate}`, { data: { path: where, fate } });
}

/** Names with quotes cannot be passed. */
function quoted(name: string): string {
  if (!name.includes("'") && !name.includes('\n')) return name;
  throw new KvmiError(
    'E_LIBVIRT',
    `the libvirt domain ${JSON.stringify(name)} has a quote in its name: use its UUID`,
  );
}

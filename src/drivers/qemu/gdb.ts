import { once } from 'node:events';
import { connect, type NetConnectOpts, type Socket } from 'node:net';
import type { Awaitable } from '../../awaitable.ts';
import { KvmiError } from '../../error.ts';
import { registerFromHex, registerToHex } from '../../rsp/hex.ts';
import { type StopReply, threadId, vcpuOfThread } from '../../rsp/stop-reply.ts';
import { type GdbRegister, includedDocuments, parseRegisters } from '../../rsp/target-description.ts';
import { peerOf } from '../../system/peer.ts';
import { closedError, GdbLink, type Stopped } from './gdb-link.ts';

/** A gdbstub that serves another client accepts a connection but never answers. */
const FIRST_ANSWER_TIMEOUT_MS = 1500;
/** What one `m` or `M` can carry: two characters a byte, in QEMU's buffer of 4096. */
const MEMORY_CHUNK = 2000;
/** What one qXfer can carry. */
const XFER_CHUNK = 0xffb;
const XFER_LIMIT = 1 << 20;
/** QEMU has no machine with more vCPUs. */
export const VCPU_LIMIT = 4096;
/** An answer to qfThreadInfo or qsThreadInfo that names threads. */
const THREADS = /^m[p0-9a-f.,]+$/;

/** What to set a breakpoint on: Z1 is an execution breakpoint that leaves guest memory alone, Z3 watches reads. */
export type BreakpointType = 1 | 3;

/** A client of QEMU's gdbstub. */
export class GdbClient {
  readonly #socket: Socket;
  readonly #where: string;
  readonly #link: GdbLink;
  #connected = false;
  #registers: ReadonlyMap<string, GdbRegister> = new Map();
  #vcpus: readonly number[] = [];
  #selected:
    | { readonly vcpu: number; readonly write: object | undefined; readonly done: Promise<void> }
    | undefined;
  #physical = false;
  #onStop: (stop: Stopped) => void = () => {};
  #onClosed: (error: Error) => void = () => {};

  /**
   * Connects, which stops the VM, and removes every breakpoint that an earlier client left. E_GDB_CONNECT when
   * there is no such socket or it belongs to a process that `isStub` does not know, E_BUSY when another client has it.
   */
  static async connect(
    options: NetConnectOpts,
    where: string,
    isStub?: (pid: number) => Awaitable<boolean>,
  ): Promise<GdbClient> {
    const socket = connect(options);
    const client = new GdbClient(socket, where);
    try {
      if (isStub) await client.#checkPeer(socket, isStub);
      await client.#synchronise();
    } catch (error) {
      client.close();
      throw error;
    }
    return client;
  }

  private constructor(socket: Socket, where: string) {
    this.#socket = socket;
    this.#where = where;
    socket.setNoDelay(true);
    this.#link = new GdbLink(
      socket,
      where,
      (stop) => this.#onStop(stop),
      (error) => this.#onClosed(error),
    );
    socket.on('error', (cause) =>
      this.#link.end(this.#connected ? closedError(where) : connectError(where, cause)),
    );
  }

  async #checkPeer(socket: Socket, isStub: (pid: number) => Awaitable<boolean>): Promise<void> {
    // That it cannot be connected is told by what comes next.
    await once(socket, 'connect').catch(() => {});
    const peer = peerOf(socket);
    if (peer === undefined || (await isStub(peer))) return;
    throw new KvmiError(
      'E_GDB_CONNECT',
      `the socket ${this.#where} belongs to process ${peer}, which is not the VM's`,
    );
  }

  /** The process at the other end, where the kernel tells. */
  get peer(): number | undefined {
    return peerOf(this.#socket);
  }

  /** The vCPUs that the VM had when it was connected. */
  get vcpus(): readonly number[] {
    return this.#vcpus;
  }

  /** As {@link GdbLink.running} says. */
  get running(): boolean {
    return this.#link.running;
  }

  /** As {@link GdbLink.stops} says. */
  get stops(): number {
    return this.#link.stops;
  }

  /** `stopped` is called for each stop, `closed` once when the stub is gone. */
  listen(stopped: (stop: Stopped) => void, closed: (error: Error) => void): void {
    this.#onStop = stopped;
    this.#onClosed = closed;
  }

  /** As {@link GdbLink.command} says. */
  command(command: string, timeoutMs?: number): Promise<string> {
    return this.#link.command(command, timeoutMs);
  }

  /** As {@link GdbLink.resume} says. */
  resume(command: string): void {
    this.#link.resume(command);
  }

  /** As {@link GdbLink.nextStop} says. */
  nextStop(): Promise<Stopped> {
    return this.#link.nextStop();
  }

  /** As {@link GdbLink.interrupt} says. */
  interrupt(): Promise<void> {
    return this.#link.interrupt();
  }

  /**
   * Makes QEMU forget that it was to step a vCPU: a step that it has not reported would stop the VM even after
   * detaching. QEMU forgets it at a stop that it attributes to that vCPU, which is the one that Hc names. The vCPU is let run
   * for that, against a breakpoint where it is; `resuming` is called before each time.
   */
  async forgetStep(vcpu: number, resuming: () => void = () => {}): Promise<void> {
    const rip = await this.readRegister(vcpu, 'rip');
    await this.setBreakpoint(1, rip, 1);
    for (let stop: StopReply | undefined; stop?.vcpu !== vcpu; ) {
      await this.command(`Hc${threadId(vcpu)}`);
      const stopped = this.nextStop();
      resuming();
      this.resume(`vCont;c:${threadId(vcpu)}`);
      void this.interrupt();
      stop = await stopped;
    }
    await this.removeBreakpoint(1, rip, 1);
  }

  /** The registers of the target, by the names of the target description. */
  register(name: string): GdbRegister {
    const register = this.#registers.get(name);
    if (!register)
      throw new KvmiError('E_GDB_PROTOCOL', `the gdbstub at ${this.#where} has no register ${name}`);
    return register;
  }

  /** E_GDB_REFUSED when there is no such vCPU. */
  async readRegister(vcpu: number, name: string): Promise<bigint> {
    const { number } = this.register(name);
    const [, answer] = await Promise.all([this.#select(vcpu), this.command(`p${number.toString(16)}`)]);
    return registerFromHex(answer);
  }

  async writeRegister(vcpu: number, name: string, value: bigint): Promise<void> {
    const { number, size } = this.register(name);
    // What comes after it would be done to another vCPU.
    this.#select(vcpu).catch((error) => this.#link.abort(error));
    await this.#expectOk(`P${number.toString(16)}=${registerToHex(value, size)}`);
  }

  /** All core registers, each at the `offset` of its {@link GdbRegister}. */
  async readRegisters(vcpu: number): Promise<Buffer> {
    const [, answer] = await Promise.all([this.#select(vcpu), this.command('g')]);
    return Buffer.from(answer, 'hex');
  }

  /** The bytes that a vCPU sees at an address; none when it does not see all of them. */
  async readVirtual(vcpu: number, gva: bigint, size: number): Promise<Uint8Array> {
    const modes = this.restoreModes();
    const selected = this.#select(vcpu);
    const [answer] = await Promise.all([
      this.command(`m${gva.toString(16)},${size.toString(16)}`),
      modes,
      selected,
    ]);
    return answer.length === 2 * size ? Buffer.from(answer, 'hex') : new Uint8Array();
  }

  /** False when any byte is not memory. */
  async readPhysical(gpa: number, into: Uint8Array): Promise<boolean> {
    this.#usePhysicalAddresses();
    const answers = chunks(into.length).map(async ([at, size]) => {
      const answer = await this.command(`m${(gpa + at).toString(16)},${size.toString(16)}`);
      if (answer.length !== 2 * size) return false;
      into.set(Buffer.from(answer, 'hex'), at);
      return true;
    });
    return (await Promise.all(answers)).every(Boolean);
  }

  /** Writes as the CPU would: translated code of these bytes is dropped. False when any byte is not writable. */
  async writePhysical(gpa: number, from: Uint8Array): Promise<boolean> {
    this.#usePhysicalAddresses();
    const answers = chunks(from.length).map(([at, size]) => {
      const bytes = Buffer.from(from.buffer, from.byteOffset + at, size).toString('hex');
      return this.command(`M${(gpa + at).toString(16)},${size.toString(16)}:${bytes}`);
    });
    return (await Promise.all(answers)).every((answer) => answer === 'OK');
  }

  async setBreakpoint(type: BreakpointType, gva: bigint, size: number): Promise<void> {
    await this.#expectOk(`Z${type},${gva.toString(16)},${size.toString(16)}`);
  }

  async removeBreakpoint(type: BreakpointType, gva: bigint, size: number): Promise<void> {
    await this.command(`z${type},${gva.toString(16)},${size.toString(16)}`);
  }

  /** Gives up what is sticky in QEMU beyond this connection. To be called before {@link detach}. */
  async restoreModes(): Promise<void> {
    if (!this.#physical) return;
    this.#physical = false;
    await this.#expectOk('Qqemu.PhyMemMode:0');
  }

  /** Closes the connection. With `resume` the VM runs on, else it stays as it is. */
  async detach(resume: boolean): Promise<void> {
    if (resume) await this.#expectOk('D;1');
    this.close();
  }

  close(): void {
    this.#link.abort(closedError(this.#where));
  }

  async #synchronise(): Promise<void> {
    const supported = this.command('qSupported:multiprocess+;vContSupported+', FIRST_ANSWER_TIMEOUT_MS);
    await supported.catch((error: KvmiError) => {
      throw error.code === 'E_GDB_TIMEOUT' ? busyError(this.#where) : error;
    });
    await this.#removeBreakpoints();
    const target = await this.#readDocument('target.xml');
    const included = await Promise.all(includedDocuments(target).map((name) => this.#readDocument(name)));
    this.#registers = parseRegisters([target, ...included]);
    this.#connected = true;
  }

  /** '?' removes those of every vCPU, or, since QEMU 7.2, only those of the vCPU that Hc names. */
  async #removeBreakpoints(): Promise<void> {
    await this.command('?');
    const vcpus: number[] = [];
    let list = await this.command('qfThreadInfo');
    while (vcpus.length < VCPU_LIMIT && THREADS.test(list)) {
      for (const thread of list.slice(1).split(',')) {
        this.#check(`Hc${thread}`);
        await this.command('?');
        vcpus.push(vcpuOfThread(thread));
      }
      list = await this.command('qsThreadInfo');
    }
    this.#vcpus = vcpus;
  }

  async #readDocument(name: string): Promise<string> {
    let text = '';
    for (;;) {
      const range = `${text.length.toString(16)},${XFER_CHUNK.toString(16)}`;
      const answer = await this.command(`qXfer:features:read:${name}:${range}`);
      text += answer.slice(1);
      if (answer[0] === 'l') return text;
      if (answer[0] !== 'm' || answer.length === 1 || text.length > XFER_LIMIT) {
        throw new KvmiError(
          'E_GDB_PROTOCOL',
          `the gdbstub at ${this.#where} does not describe its registers`,
        );
      }
    }
  }

  /** In each write anew: a stop selects the vCPU that it is attributed to, and may have come before the write. */
  #select(vcpu: number): Promise<void> {
    const { open } = this.#link;
    if (open && open === this.#selected?.write && vcpu === this.#selected.vcpu) return this.#selected.done;
    const done = this.#expectOk(`Hg${threadId(vcpu)}`);
    this.#selected = { vcpu, write: this.#link.open, done };
    return done;
  }

  #usePhysicalAddresses(): void {
    if (this.#physical) return;
    this.#physical = true;
    this.#check('Qqemu.PhyMemMode:1');
  }

  /** Sends a command whose failure makes what follows meaningless. */
  #check(command: string): void {
    this.#expectOk(command).catch((error) => this.#link.abort(error));
  }

  async #expectOk(command: string): Promise<void> {
    const answer = await this.command(command);
    if (answer === 'OK') return;
    const what = answer === '' ? 'does not know' : `answered ${answer} to`;
    throw new KvmiError('E_GDB_REFUSED', `the gdbstub at ${this.#where} ${what} ${command.slice(0, 60)}`, {
      data: { command, answer },
    });
  }
}

/** The pieces [at, size] in which `length` bytes travel. */
function chunks(length: number): [number, number][] {
  const pieces: [number, number][] = [];
  for (let at = 0; at < length; at += MEMORY_CHUNK) pieces.push([at, Math.min(MEMORY_CHUNK, length - at)]);
  return pieces;
}

function connectError(where: string, cause: Error): KvmiError {
  return new KvmiError('E_GDB_CONNECT', `no connection to the gdbstub at ${where}: ${cause.message}`, {
    cause,
  });
}

function busyError(where: string): KvmiError {
  return new KvmiError('E_BUSY', `the gdbstub at ${where} is in use: it does not answer`, {
    hint: 'A VM has one gdbstub with one client. Detach the debugger that uses it.',
  });
}

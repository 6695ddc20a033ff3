import { once } from 'node:events';
import { connect, type NetConnectOpts, type Socket } from 'node:net';
import type { Awaitable } from '../../awaitable.ts';
import { KvmiError } from '../../error.ts';
import { registerFromHex, registerToHex } from '../../rsp/hex.ts';
import { encodePacket, type Incoming, PacketReader } from '../../rsp/packets.ts';
import { parseStopReply, type StopReply, threadId } from '../../rsp/stop-reply.ts';
import { type GdbRegister, includedDocuments, parseRegisters } from '../../rsp/target-description.ts';
import { peerOf } from '../../system/peer.ts';

/** A gdbstub that serves another client accepts a connection but never answers. */
const FIRST_ANSWER_TIMEOUT_MS = 1500;
const COMMAND_TIMEOUT_MS = 10_000;
/** QEMU stops its vCPUs within milliseconds, but first flushes its disks. */
const STOP_TIMEOUT_MS = 30_000;
/** What one `m` or `M` can carry: two characters a byte, in QEMU's buffer of 4096. */
const MEMORY_CHUNK = 2000;
/** No packet of QEMU is longer: its buffer holds 4096 bytes, and a byte takes at most two characters. */
const PACKET_LIMIT = 1 << 16;
/** What one qXfer can carry. */
const XFER_CHUNK = 0xffb;
const XFER_LIMIT = 1 << 20;
/** How many threads are asked for; QEMU has no machine with more vCPUs. */
const VCPU_LIMIT = 4096;
/** An answer to qfThreadInfo or qsThreadInfo that names threads. */
const THREADS = /^m[p0-9a-f.,]+$/;

const INTERRUPT = Buffer.from('\x03');
const ACKNOWLEDGEMENT = Buffer.from('+');

/** What to set a breakpoint on: Z1 is an execution breakpoint that leaves guest memory alone, Z3 watches reads. */
export type BreakpointType = 1 | 3;

interface Pending {
  readonly command: string;
  readonly timer: NodeJS.Timeout;
  resolve(answer: string): void;
  reject(error: Error): void;
}

/**
 * A client of QEMU's gdbstub.
 *
 * The stub is all-stop: it answers commands only while every vCPU is stopped, and any byte sent to it while the
 * guest runs stops the guest. {@link running} says which it is; commands are refused while it is true.
 * Commands are pipelined: they are answered in order, and none waits for the one before it.
 */
export class GdbClient {
  readonly #socket: Socket;
  readonly #where: string;
  readonly #reader = new PacketReader({ limit: PACKET_LIMIT, repeats: true });
  readonly #pending: Pending[] = [];
  #running = false;
  /** The first packets after connecting may be a stop reply that nobody asked for. */
  #synchronising = true;
  #unacknowledged = false;
  #registers: ReadonlyMap<string, GdbRegister> = new Map();
  #selected = -1;
  #physical = false;
  #ended: Error | undefined;
  #onStop: (stop: StopReply) => void = () => {};
  #onClosed: (error: Error) => void = () => {};
  #stopWaiters: { resolve(stop: StopReply): void; reject(error: Error): void }[] = [];

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
    socket.on('data', (chunk) => this.#receive(chunk));
    socket.on('error', (cause) => {
      this.#end(this.#synchronising ? connectError(where, cause) : closedError(where));
    });
    socket.on('close', () => this.#end(closedError(where)));
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

  /** True from {@link resume} until the stop reply. */
  get running(): boolean {
    return this.#running;
  }

  /** `stopped` is called for each stop after a {@link resume}, `closed` once when the stub is gone. */
  listen(stopped: (stop: StopReply) => void, closed: (error: Error) => void): void {
    this.#onStop = stopped;
    this.#onClosed = closed;
  }

  /** Sends one command and answers the payload of its reply. */
  command(command: string, timeoutMs = COMMAND_TIMEOUT_MS): Promise<string> {
    if (this.#ended) return Promise.reject(this.#ended);
    if (this.#running) {
      return Promise.reject(
        new KvmiError('E_GDB_PROTOCOL', `${command}: the guest runs, the gdbstub does not listen`),
      );
    }
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => this.#abort(timeoutError(command, this.#where)), timeoutMs);
      this.#pending.push({ command, timer, resolve, reject });
      this.#send(encodePacket(command));
    });
  }

  /** Lets vCPUs run as `command` (`c`, `vCont;…`) says. */
  resume(command: string): void {
    if (this.#ended || this.#running) return;
    this.#running = true;
    this.#send(encodePacket(command));
  }

  /** Resolves with the next stop. E_GDB_TIMEOUT when there is none in time. */
  nextStop(timeoutMs = STOP_TIMEOUT_MS): Promise<StopReply> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(timeoutError('a stop', this.#where)), timeoutMs);
      this.#stopWaiters.push({
        resolve: (stop) => {
          clearTimeout(timer);
          resolve(stop);
        },
        reject: (error) => {
          clearTimeout(timer);
          reject(error);
        },
      });
      if (this.#ended) this.#rejectStopWaiters(this.#ended);
    });
  }

  /**
   * Makes QEMU forget that it was to step a vCPU: a step that it has not reported would stop the VM even after
   * detaching. QEMU forgets it at a stop that it attributes to that vCPU, which is the one that Hc names.
   */
  async forgetStep(vcpu: number): Promise<void> {
    for (let stop: StopReply | undefined; stop?.vcpu !== vcpu; ) {
      await this.command(`Hc${threadId(vcpu)}`);
      const stopped = this.nextStop();
      this.resume(`vCont;c:${threadId(vcpu)}`);
      this.interrupt();
      stop = await stopped;
    }
  }

  /** Asks for a stop; the stop reply comes even when something else stops the guest first. */
  interrupt(): void {
    // The stub drops what comes before the acknowledgement that it waits for.
    if (!this.#ended && this.#running) this.#send(INTERRUPT);
  }

  /** The guest runs though it was not resumed from here: somebody else let it. */
  assumeRunning(): void {
    this.#running = true;
  }

  /** The registers of the target, by the names of the target description. */
  register(name: string): GdbRegister {
    const register = this.#registers.get(name);
    if (!register)
      throw new KvmiError('E_GDB_PROTOCOL', `the gdbstub at ${this.#where} has no register ${name}`);
    return register;
  }

  async readRegister(vcpu: number, name: string): Promise<bigint> {
    const { number } = this.register(name);
    this.#select(vcpu);
    return registerFromHex(await this.command(`p${number.toString(16)}`));
  }

  async writeRegister(vcpu: number, name: string, value: bigint): Promise<void> {
    const { number, size } = this.register(name);
    this.#select(vcpu);
    await this.#expectOk(`P${number.toString(16)}=${registerToHex(value, size)}`);
  }

  /** All core registers, each at the `offset` of its {@link GdbRegister}. */
  async readRegisters(vcpu: number): Promise<Buffer> {
    this.#select(vcpu);
    return Buffer.from(await this.command('g'), 'hex');
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

  /** Gives up what is sticky in QEMU beyond this connection. With `resume` the VM runs on, else it stays stopped. */
  async detach(resume: boolean): Promise<void> {
    if (this.#physical) await this.#expectOk('Qqemu.PhyMemMode:0');
    this.#physical = false;
    if (resume) await this.#expectOk('D;1');
    this.close();
  }

  close(): void {
    this.#end(closedError(this.#where));
    this.#socket.destroy();
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
  }

  /** '?' removes those of every vCPU, or, since QEMU 7.2, only those of the vCPU that Hc names. */
  async #removeBreakpoints(): Promise<void> {
    await this.command('?');
    let list = await this.command('qfThreadInfo');
    for (let vcpu = 0; vcpu < VCPU_LIMIT && THREADS.test(list); vcpu++) {
      for (const thread of list.slice(1).split(',')) {
        this.#check(`Hc${thread}`);
        await this.command('?');
      }
      list = await this.command('qsThreadInfo');
    }
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

  #select(vcpu: number): void {
    if (vcpu === this.#selected) return;
    this.#selected = vcpu;
    this.#check(`Hg${threadId(vcpu)}`);
  }

  #usePhysicalAddresses(): void {
    if (this.#physical) return;
    this.#physical = true;
    this.#check('Qqemu.PhyMemMode:1');
  }

  /** Sends a command whose failure makes what follows meaningless. */
  #check(command: string): void {
    this.#expectOk(command).catch((error) => this.#abort(error));
  }

  async #expectOk(command: string): Promise<void> {
    const answer = await this.command(command);
    if (answer === 'OK') return;
    const what = answer === '' ? 'does not know' : `answered ${answer} to`;
    throw new KvmiError('E_GDB_REFUSED', `the gdbstub at ${this.#where} ${what} ${command.slice(0, 60)}`, {
      data: { command, answer },
    });
  }

  /**
   * The acknowledgement of the last packet goes out with the next one: alone it could stop a running guest. What is sent
   * without waiting in between goes out as one piece, so that a process which is killed has written all registers or none.
   */
  #send(packet: Uint8Array): void {
    if (this.#socket.writableCorked === 0) {
      this.#socket.cork();
      process.nextTick(() => this.#socket.uncork());
    }
    this.#socket.write(this.#unacknowledged ? Buffer.concat([ACKNOWLEDGEMENT, packet]) : packet);
    this.#unacknowledged = false;
  }

  #receive(chunk: Buffer): void {
    for (const incoming of this.#reader.feed(chunk)) this.#take(incoming);
  }

  #take(incoming: Incoming): void {
    if (incoming.kind === 'packet') this.#dispatch(Buffer.from(incoming.data).toString('latin1'));
    else if (incoming.kind === 'corrupt' || incoming.kind === 'oversized')
      this.#abort(damagedError(this.#where));
  }

  #dispatch(payload: string): void {
    this.#unacknowledged = true;
    if (this.#running) {
      const stop = parseStopReply(payload);
      if (stop === undefined) return;
      this.#running = false;
      // The stub selects the vCPU that the stop is attributed to.
      this.#selected = -1;
      for (const waiter of this.#stopWaiters.splice(0)) waiter.resolve(stop);
      this.#onStop(stop);
      return;
    }
    if (this.#synchronising) {
      if (parseStopReply(payload) !== undefined) return;
      this.#synchronising = false;
    }
    const pending = this.#pending.shift();
    if (!pending) return;
    clearTimeout(pending.timer);
    pending.resolve(payload);
  }

  #abort(error: Error): void {
    this.#end(error);
    this.#socket.destroy();
  }

  #end(error: Error): void {
    if (this.#ended) return;
    this.#ended = error;
    for (const { timer, reject } of this.#pending.splice(0)) {
      clearTimeout(timer);
      reject(error);
    }
    this.#rejectStopWaiters(error);
    this.#onClosed(error);
  }

  #rejectStopWaiters(error: Error): void {
    for (const waiter of this.#stopWaiters.splice(0)) waiter.reject(error);
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

function closedError(where: string): KvmiError {
  return new KvmiError(
    'E_GDB_CLOSED',
    `the connection to the gdbstub at ${where} is closed: QEMU has ended or dropped it`,
  );
}

function damagedError(where: string): KvmiError {
  return new KvmiError('E_GDB_PROTOCOL', `a packet of the gdbstub at ${where} is damaged or has no end`);
}

function timeoutError(command: string, where: string): KvmiError {
  return new KvmiError(
    'E_GDB_TIMEOUT',
    `the gdbstub at ${where} did not answer ${command.slice(0, 40)} in time`,
  );
}

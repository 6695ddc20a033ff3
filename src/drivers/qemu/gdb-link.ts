import type { Duplex } from 'node:stream';
import { KvmiError } from '../../error.ts';
import { encodePacket, type Incoming, PacketReader } from '../../rsp/packets.ts';
import { parseStopReply, SIGINT, type StopReply } from '../../rsp/stop-reply.ts';

const COMMAND_TIMEOUT_MS = 10_000;
/** QEMU stops its vCPUs within milliseconds, but first flushes its disks. */
const STOP_TIMEOUT_MS = 30_000;
/** No packet of QEMU is longer: its buffer holds 4096 bytes, and a byte takes at most two characters. */
const PACKET_LIMIT = 1 << 16;

/** A question without effect whose answer no other command has. */
const SHIELD = { packet: encodePacket('qC'), answer: 'QC' } as const;
/** Another one, to have an answer at all. */
const NOTHING = 'vCont?';

/** A stop of the VM. */
export interface Stopped extends StopReply {
  /** True when what this client sent stopped the VM; false when something in the guest did, or somebody else. */
  readonly asked: boolean;
}

/** What went out in one piece: a shield, and packets after it. */
interface Write {
  /** The last of its packets lets vCPUs run. */
  resumes: boolean;
  /** Whether the shield was lost cannot be told before the next stop. */
  unsure: boolean;
}

interface Pending {
  readonly command: string;
  readonly write: Write;
  /** The guest ran when it was sent, as far as was known, and has not been seen to stop since. */
  interrupts: boolean;
  readonly timer: NodeJS.Timeout;
  resolve(answer: string): void;
  reject(error: Error): void;
}

interface Waiter {
  resolve(stop: Stopped): void;
  reject(error: Error): void;
}

/**
 * Packets to QEMU's gdbstub and back.
 *
 * The stub is all-stop. Any byte that reaches it while the guest runs stops the guest and is lost, and whether it runs
 * is not in this client's hands alone: somebody else may let it run, by the monitor, at any time. So each write begins
 * with a packet that may be lost, the shield: what comes after it is understood in any case. Whether the shield was answered
 * tells whether the write has stopped the guest, or something else had before.
 *
 * Commands are pipelined: they are answered in order, and none waits for the one before it.
 */
export class GdbLink {
  readonly #socket: Duplex;
  readonly #where: string;
  readonly #reader = new PacketReader({ limit: PACKET_LIMIT, repeats: true });
  readonly #pending: Pending[] = [];
  /** Those whose shield was not answered. */
  readonly #writes: Write[] = [];
  /** What the next packet goes out with. */
  #write: Write | undefined;
  /** A stop of which the next packet tells whether it was asked for. */
  #undecided: StopReply | undefined;
  #running = false;
  #stops = 0;
  #ended: Error | undefined;
  readonly #onStop: (stop: Stopped) => void;
  readonly #onClosed: (error: Error) => void;
  #waiters: Waiter[] = [];

  /** `onStop` is called for each stop, `onClosed` once when the connection has ended. */
  constructor(
    socket: Duplex,
    where: string,
    onStop: (stop: Stopped) => void,
    onClosed: (error: Error) => void,
  ) {
    this.#socket = socket;
    this.#where = where;
    this.#onStop = onStop;
    this.#onClosed = onClosed;
    socket.on('data', (chunk) => {
      for (const incoming of this.#reader.feed(chunk)) this.#take(incoming);
    });
    socket.on('close', () => this.end(closedError(where)));
  }

  /** True from {@link resume} until the next stop; it may run at other times, too, when somebody else lets it. */
  get running(): boolean {
    return this.#running;
  }

  /** How often the stub has said that the VM was stopped. */
  get stops(): number {
    return this.#stops;
  }

  /** Stands for what goes out in one piece with the next packet; undefined when that begins a new one. */
  get open(): object | undefined {
    return this.#write;
  }

  /** Sends one command and answers the payload of its reply. Stops the guest if it runs. */
  command(command: string, timeoutMs = COMMAND_TIMEOUT_MS): Promise<string> {
    if (this.#ended) return Promise.reject(this.#ended);
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => this.abort(timeoutError(command, this.#where)), timeoutMs);
      const write = this.#send(command);
      const interrupts = this.#running;
      this.#pending.push({ command, write, interrupts, timer, resolve, reject });
    });
  }

  /** Lets vCPUs run as `command` (`c`, `vCont;…`) says. */
  resume(command: string): void {
    if (this.#ended || this.#running) return;
    this.#running = true;
    this.#send(command).resumes = true;
    this.#write = undefined;
  }

  /** Stops the guest if it runs. A guest that was {@link running} is reported to have stopped in any case. */
  async interrupt(): Promise<void> {
    await this.command(NOTHING, STOP_TIMEOUT_MS).catch(() => {});
  }

  /** Resolves with the next stop. E_GDB_TIMEOUT when there is none in time. */
  nextStop(timeoutMs = STOP_TIMEOUT_MS): Promise<Stopped> {
    if (this.#ended) return Promise.reject(this.#ended);
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(timeoutError('a stop', this.#where)), timeoutMs);
      const inTime =
        <T>(then: (value: T) => void) =>
        (value: T) => {
          clearTimeout(timer);
          then(value);
        };
      this.#waiters.push({ resolve: inTime(resolve), reject: inTime(reject) });
    });
  }

  /** Ends the connection because of `error`. */
  abort(error: Error): void {
    this.end(error);
    this.#socket.destroy();
  }

  /** Whatever waits is rejected with `error`. */
  end(error: Error): void {
    if (this.#ended) return;
    this.#ended = error;
    for (const { timer, reject } of this.#pending.splice(0)) {
      clearTimeout(timer);
      reject(error);
    }
    for (const { reject } of this.#waiters.splice(0)) reject(error);
    this.#onClosed(error);
  }

  /**
   * What is sent without waiting in between goes out as one piece, so that a process which is killed has written all
   * registers or none. Acknowledgements are not sent: QEMU takes the beginning of a packet for one.
   */
  #send(command: string): Write {
    if (this.#socket.writableCorked === 0) {
      this.#socket.cork();
      process.nextTick(() => {
        this.#write = undefined;
        this.#socket.uncork();
      });
    }
    if (!this.#write) {
      this.#write = { resumes: false, unsure: false };
      this.#writes.push(this.#write);
      this.#socket.write(SHIELD.packet);
    }
    this.#socket.write(encodePacket(command));
    return this.#write;
  }

  #take(incoming: Incoming): void {
    if (incoming.kind === 'packet') this.#dispatch(Buffer.from(incoming.data).toString('latin1'));
    else if (incoming.kind === 'corrupt' || incoming.kind === 'oversized')
      this.abort(damagedError(this.#where));
  }

  #dispatch(payload: string): void {
    const stop = parseStopReply(payload);
    if (payload.startsWith(SHIELD.answer)) this.#shielded();
    else if (stop && !this.#isAnswer()) this.#stopped(stop);
    else this.#answered(payload);
  }

  #answered(payload: string): void {
    const pending = this.#pending.shift();
    // An exit of the VM (`W00`), or the rest of what somebody asked before.
    if (!pending) return;
    if (pending.write === this.#writes[0]) this.#writes.shift();
    if (this.#undecided) this.#deliver({ ...this.#undecided, asked: true });
    // The guest did not run: there is no stop to come.
    else if (pending.interrupts && this.#running)
      this.#deliver({ signal: SIGINT, vcpu: undefined, watchpoint: false, asked: true });
    clearTimeout(pending.timer);
    pending.resolve(payload);
  }

  /** Whether a stop reply is what was asked with `?`: its shield was answered, or lost, which is a stop of its own. */
  #isAnswer(): boolean {
    const [pending] = this.#pending;
    if (pending?.command !== '?') return false;
    return pending.write !== this.#writes[0] || this.#undecided?.signal === SIGINT;
  }

  #shielded(): void {
    this.#writes.shift();
    if (this.#undecided) this.#deliver({ ...this.#undecided, asked: false });
  }

  #stopped(stop: StopReply): void {
    this.#stops++;
    if (this.#writes[0]?.unsure) this.#writes.shift();
    const [write] = this.#writes;
    // It stopped before it was to run, and runs.
    if (write?.resumes) write.unsure = true;
    else if (write) this.#undecided = stop;
    else this.#deliver({ ...stop, asked: false });
  }

  #deliver(stop: Stopped): void {
    this.#undecided = undefined;
    this.#running = false;
    for (const pending of this.#pending) pending.interrupts = false;
    for (const { resolve } of this.#waiters.splice(0)) resolve(stop);
    this.#onStop(stop);
  }
}

/** The connection is closed. */
export function closedError(where: string): KvmiError {
  return new KvmiError('E_GDB_CLOSED', `QEMU has closed its gdbstub at ${where}`, {
    hint: 'Somebody else has removed it (`gdbserver none`, `virsh qemu-monitor-command`): hook the VM again.',
  });
}

function damagedError(where: string): KvmiError {
  return new KvmiError('E_GDB_PROTOCOL', `a packet of the gdbstub at ${where} is damaged or has no end`);
}

function timeoutError(command: string, where: string): KvmiError {
  return new KvmiError(
    'E_GDB_TIMEOUT',
    `no answer to ${command.slice(0, 60)} from the gdbstub at ${where} in time`,
  );
}

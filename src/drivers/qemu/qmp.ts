import type { Awaitable } from '../../awaitable.ts';
import { KvmiError } from '../../error.ts';

/** An asynchronous message of QEMU: `STOP`, `RESUME`, `SHUTDOWN`, … */
export interface QmpEvent {
  readonly name: string;
  readonly data: Readonly<Record<string, unknown>>;
}

/** Where a VM's monitor is: at a socket of its own, or behind libvirt (`uri` as virsh takes it). */
export type QmpAddress = { readonly qmp: string } | { readonly libvirt: string; readonly uri?: string };

/** Told like an event of QEMU by a connection whose events may have been missed, and again as long as that may go on. */
export const EVENTS_MISSED = 'KVMI_EVENTS_MISSED';

/** A connection to QEMU's monitor (QMP). */
export interface QmpConnection {
  /** For messages: the socket's path, or the libvirt domain. */
  readonly where: string;
  /** Runs one command and returns its `return` value. Rejects with E_QMP_COMMAND when QEMU refuses it. */
  execute(command: string, args?: Readonly<Record<string, unknown>>): Promise<unknown>;
  /** Runs one line of the human monitor, on the vCPU `cpuIndex` where that matters, and returns what it prints. */
  hmp(line: string, cpuIndex?: number): Promise<string>;
  /**
   * Whether `pid` is the process at the other end, as the kernel or libvirt has it. QEMU itself is not asked: it may be
   * an enemy that names another VM's process.
   */
  isServer(pid: number): Awaitable<boolean>;
  /** Calls `listener` for each event until the returned function is called. */
  onEvent(listener: (event: QmpEvent) => void): () => void;
  /** Calls `listener` once when the connection has ended; `error` unless {@link close} ended it. */
  onClosed(listener: (error?: Error) => void): void;
  /** Where others use this connection, it is over when what they asked has been answered. */
  close(): Awaitable<void>;
}

/**
 * A way to QEMU's monitor that the processes of a user share: a socket, or a management layer that passes commands
 * through.
 */
export interface QmpTransport extends QmpConnection {
  /** The process at the other end, where the kernel tells and it is QEMU's own socket. */
  readonly peer: number | undefined;
  /**
   * To be called before anything about the VM is changed: reserves it for this process. Other processes of kvmi go on
   * reading it. Rejects with E_BUSY while another one has it.
   */
  claim(): Awaitable<void>;
  /** Ends what {@link claim} began. */
  release(): void;
  /**
   * What became of a QEMU that does not answer any more, where there is somebody who knows: E_GONE. Undefined
   * while it lives. Never rejects.
   */
  fate?(): Promise<KvmiError | undefined>;
}

/** How long a monitor command may take. */
export const QMP_TIMEOUT_MS = 10_000;

/** No line of QMP is longer; the largest answers (schemas, memory trees) have some 100 KiB. */
export const QMP_LINE_LIMIT = 16 << 20;

const NEWLINE = 0x0a;

/** Splits a byte stream into lines, however it is cut. A line longer than the limit throws E_QMP_PROTOCOL. */
export class LineSplitter {
  readonly #limit: number;
  #parts: Uint8Array[] = [];
  #size = 0;

  constructor(limit = QMP_LINE_LIMIT) {
    this.#limit = limit;
  }

  /** The lines that `chunk` completes, without their line ends. `chunk` must not be changed afterwards. */
  push(chunk: Uint8Array): string[] {
    const lines: string[] = [];
    let from = 0;
    for (let end = chunk.indexOf(NEWLINE); end >= 0; end = chunk.indexOf(NEWLINE, from)) {
      this.#add(chunk.subarray(from, end));
      lines.push(Buffer.concat(this.#parts, this.#size).toString('utf8').trimEnd());
      this.#parts = [];
      this.#size = 0;
      from = end + 1;
    }
    if (from < chunk.length) this.#add(chunk.subarray(from));
    return lines;
  }

  #add(part: Uint8Array): void {
    this.#size += part.length;
    if (this.#size > this.#limit) {
      throw new KvmiError('E_QMP_PROTOCOL', `a monitor line is longer than ${this.#limit} bytes`);
    }
    this.#parts.push(part);
  }
}

/** A process that shares its connection to QEMU, and the process at the other end of that. */
export interface QmpHolder {
  readonly pid: number | undefined;
  readonly server: number | undefined;
}

/** One line of QMP, sorted by what it is. */
export type QmpMessage =
  /** `holder`: who lets others use its connection to QEMU, when it is not QEMU that greets. */
  | { readonly kind: 'greeting'; readonly holder: QmpHolder | undefined }
  | { readonly kind: 'event'; readonly event: QmpEvent }
  | { readonly kind: 'return'; readonly id: unknown; readonly value: unknown }
  | { readonly kind: 'error'; readonly id: unknown; readonly errorClass: string; readonly text: string };

/** Decodes one line; anything that is not QMP throws E_QMP_PROTOCOL. */
export function parseQmpMessage(line: string): QmpMessage {
  let message: unknown;
  try {
    message = JSON.parse(line);
  } catch (cause) {
    throw new KvmiError('E_QMP_PROTOCOL', `not a QMP message: ${line.slice(0, 80)}`, { cause });
  }
  const fields = recordOf(message, 'a QMP message');
  if ('QMP' in fields) return { kind: 'greeting', holder: holderOf(fields) };
  if (typeof fields.event === 'string') {
    const data = fields.data === undefined ? {} : recordOf(fields.data, 'the data of an event');
    return { kind: 'event', event: { name: fields.event, data } };
  }
  if ('error' in fields) {
    const error = recordOf(fields.error, 'a QMP error');
    return { kind: 'error', id: fields.id, errorClass: String(error.class), text: String(error.desc) };
  }
  if ('return' in fields) return { kind: 'return', id: fields.id, value: fields.return };
  throw new KvmiError('E_QMP_PROTOCOL', `not a QMP message: ${line.slice(0, 80)}`);
}

function holderOf({ kvmi }: Readonly<Record<string, unknown>>): QmpHolder | undefined {
  if (kvmi === undefined) return undefined;
  const { pid, server } = recordOf(kvmi, 'a holder');
  return { pid: processId(pid), server: processId(server) };
}

function processId(value: unknown): number | undefined {
  return typeof value === 'number' && Number.isSafeInteger(value) && value > 0 ? value : undefined;
}

/** QEMU refused a command. */
export function qmpCommandError(command: string, errorClass: string, text: string, where: string): KvmiError {
  // Of the process that shares its connection.
  if (errorClass === 'E_QMP_TIMEOUT')
    return new KvmiError(errorClass, text, { data: { command, path: where } });
  return new KvmiError('E_QMP_COMMAND', `QEMU at ${where} refused ${command}: ${text}`, {
    data: { command, class: errorClass, text, where },
  });
}

/** `value` as an object with properties, or E_QMP_PROTOCOL naming `what`. */
export function recordOf(value: unknown, what: string): Readonly<Record<string, unknown>> {
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) {
    return value as Record<string, unknown>;
  }
  throw new KvmiError('E_QMP_PROTOCOL', `${what} is not an object`);
}

/** `value` as an array of objects, or E_QMP_PROTOCOL naming `what`. */
export function recordsOf(value: unknown, what: string): Readonly<Record<string, unknown>>[] {
  if (!Array.isArray(value)) throw new KvmiError('E_QMP_PROTOCOL', `${what} is not a list`);
  return value.map((element) => recordOf(element, what));
}

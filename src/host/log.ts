import { KvmiError, messageOf } from '../error.ts';

/** Where the host side reports what the kernel would print. */
export interface Log {
  info(message: string): void;
  warn(message: string): void;
  error(message: string): void;
}

/** 16 bytes as the kernel prints a UUID: lower-case, in byte order, with dashes. */
export function formatUuid(uuid: Uint8Array): string {
  const hex = Buffer.from(uuid.buffer, uuid.byteOffset, uuid.byteLength).toString('hex');
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`;
}

/** More different messages than this are not told apart any more: a guest may be what makes them differ. */
const MAX_DISTINCT = 256;

/** Keeps quiet. */
export const SILENT: Log = { info() {}, warn() {}, error() {} };

const NO_UUID = formatUuid(new Uint8Array(16));

/** How a VM is called in a log: by its name, and by its UUID where it has one. */
export function vmLabel(name: string, uuid: Uint8Array): string {
  const id = formatUuid(uuid);
  const line = name.replaceAll(/[\r\n]+/g, ' ');
  return id === NO_UUID ? line : `${line} (${id})`;
}

/** An error as one line of a log: what it says, its code, and the next step. */
export function logLineOf(error: unknown): string {
  if (!(error instanceof KvmiError)) return messageOf(error);
  return [`${error.message} [${error.code}]`, error.hint].filter(Boolean).join('; ');
}

/** A log in which each line starts with what the VM is called. */
export class HookLog {
  readonly #log: Log;
  readonly #prefix: string;
  readonly #seen = new Set<string>();

  /** @param vm what {@link vmLabel} gives. */
  constructor(log: Log, vm: string) {
    this.#log = log;
    this.#prefix = `${vm}:`;
  }

  info(message: string): void {
    this.#log.info(`${this.#prefix} ${message}`);
  }

  warn(message: string): void {
    this.#log.warn(`${this.#prefix} ${message}`);
  }

  /** Warns the first time that this comes up while the VM is hooked. */
  warnOnce(message: string): void {
    if (this.#isNew(message)) this.warn(message);
  }

  error(message: string): void {
    this.#log.error(`${this.#prefix} ${message}`);
  }

  /** Reports the first time that this comes up while the VM is hooked: a tool cannot flood the log. */
  errorOnce(message: string): void {
    if (this.#isNew(message)) this.error(message);
  }

  #isNew(message: string): boolean {
    if (this.#seen.has(message) || this.#seen.size >= MAX_DISTINCT) return false;
    this.#seen.add(message);
    return true;
  }
}

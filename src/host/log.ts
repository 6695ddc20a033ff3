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

/** A log in which each line starts with the UUID of the VM and its severity, as in series v9. */
export class HookLog {
  readonly #log: Log;
  readonly #prefix: string;
  readonly #seen = new Set<string>();

  constructor(log: Log, uuid: Uint8Array) {
    this.#log = log;
    this.#prefix = formatUuid(uuid);
  }

  info(message: string): void {
    this.#log.info(`${this.#prefix} ${message}`);
  }

  warn(message: string): void {
    this.#log.warn(`${this.#prefix} WARNING: ${message}`);
  }

  /** Warns the first time that this comes up while the VM is hooked. */
  warnOnce(message: string): void {
    if (this.#isNew(message)) this.warn(message);
  }

  error(message: string): void {
    this.#log.error(`${this.#prefix} ERROR: ${message}`);
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

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

/** Keeps quiet. */
export const SILENT: Log = { info() {}, warn() {}, error() {} };

/** A log in which each line starts with the UUID of the VM and its severity, as in series v9. */
export class HookLog {
  readonly #log: Log;
  readonly #prefix: string;
  readonly #once = new Set<string>();

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

  /** Warns the first time that `key` comes up while this VM is hooked. */
  warnOnce(key: string, message: string): void {
    if (this.#once.has(key)) return;
    this.#once.add(key);
    this.warn(message);
  }

  error(message: string): void {
    this.#log.error(`${this.#prefix} ERROR: ${message}`);
  }
}

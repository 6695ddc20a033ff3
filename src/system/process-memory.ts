import { check, libc } from './libc.ts';

const O_RDWR = 2;
const O_CLOEXEC = 0x80000;

/** The memory of another process (/proc/PID/mem), by its virtual addresses. */
export class ProcessMemory {
  readonly #fd: number;

  /** @throws SystemError: EACCES or EPERM without the right to trace it, ENOENT when it is gone. */
  constructor(pid: number) {
    this.#fd = check(
      libc().open(`/proc/${pid}/mem`, O_RDWR | O_CLOEXEC, 0),
      `opening the memory of process ${pid}`,
    );
  }

  /** False when any byte of it is not mapped. */
  read(address: number, into: Uint8Array): boolean {
    return libc().pread(this.#fd, into, into.length, address) === into.length;
  }

  /** Writes also where the process itself may not. */
  write(address: number, from: Uint8Array): boolean {
    return libc().pwrite(this.#fd, from, from.length, address) === from.length;
  }

  close(): void {
    libc().close(this.#fd);
  }
}

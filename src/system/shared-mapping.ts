import { libc, SystemError, type Word } from './libc.ts';

const PROT_READ = 1;
const PROT_WRITE = 2;
const MAP_SHARED = 1;
const MAP_FAILED = 2n ** 64n - 1n;

/** Part of a file or device in the memory of this process, shared with whoever else has mapped it. */
export class SharedMapping {
  /** Not to be touched after `unmap`. */
  readonly bytes: Uint8Array;
  readonly #address: Word;

  /**
   * The descriptor is not needed afterwards.
   *
   * @param what is mapped, for the error.
   * @throws SystemError when the kernel refuses.
   */
  constructor(what: string, fd: number, size: number, access: 'read' | 'write', offset = 0) {
    const protection = access === 'write' ? PROT_READ | PROT_WRITE : PROT_READ;
    this.#address = libc().mmap(0, size, protection, MAP_SHARED, fd, offset);
    if (BigInt(this.#address) === MAP_FAILED) throw new SystemError(`mapping ${what}`, libc().errno());
    this.bytes = new Uint8Array(libc().view(this.#address, size));
  }

  unmap(): void {
    libc().munmap(this.#address, this.bytes.length);
  }
}

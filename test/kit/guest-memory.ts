import { closeSync, fstatSync, openSync, readdirSync, readlinkSync, readSync, writeSync } from 'node:fs';
import koffi from 'koffi';
import { RegionMemory } from '../../src/machine/index.ts';

const SEEK_DATA = 3;
const lseek = koffi.load('libc.so.6').func('int64_t lseek(int, int64_t, int)');

/** The memory of a QEMU that has less than 3 GiB of it, in a shared memfd. */
export class GuestMemory extends RegionMemory {
  readonly #fd: number;

  constructor(pid: number) {
    const directory = `/proc/${pid}/fd`;
    const name = readdirSync(directory).find((fd) =>
      readlinkSync(`${directory}/${fd}`).includes('memory-backend-memfd'),
    );
    if (name === undefined) throw new Error(`process ${pid} has no memfd of guest memory`);
    const fd = openSync(`${directory}/${name}`, 'r+');
    const { size } = fstatSync(fd);
    const backend = {
      read: (offset: number, into: Uint8Array) => readSync(fd, into, 0, into.length, offset) === into.length,
      write: (offset: number, from: Uint8Array) =>
        writeSync(fd, from, 0, from.length, offset) === from.length,
      nextData: (offset: number) => {
        const next = Number(lseek(fd, offset, SEEK_DATA));
        return next < 0 ? size : next;
      },
    };
    super([{ gpa: 0, size, readonly: false, backend }]);
    this.#fd = fd;
  }

  close(): void {
    closeSync(this.#fd);
  }
}

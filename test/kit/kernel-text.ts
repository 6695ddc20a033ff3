import { createHash } from 'node:crypto';
import { readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { LinuxGuest } from './linux-guest.ts';

/** Addresses of kernel symbols, as the guest's own /proc/kallsyms has them. */
export async function symbolsOf(vm: LinuxGuest, names: readonly string[]): Promise<Record<string, bigint>> {
  const lines = await vm.run(`grep -E ' (${names.join('|')})$' /proc/kallsyms`);
  const rows = lines
    .trim()
    .split('\n')
    .map((line) => line.trim().split(/\s+/));
  return Object.fromEntries(rows.map(([address, , name]) => [name!, BigInt(`0x${address}`)]));
}

/** The kernel's text as QEMU's own `memsave` shows it, to be compared with itself later. */
export class KernelText {
  readonly #start: bigint;
  readonly #size: number;
  readonly #pages: readonly string[];

  private constructor(start: bigint, size: number, pages: readonly string[]) {
    this.#start = start;
    this.#size = size;
    this.#pages = pages;
  }

  static async of(vm: LinuxGuest): Promise<KernelText> {
    const { _stext, _etext } = await symbolsOf(vm, ['_stext', '_etext']);
    const size = Number(_etext! - _stext!);
    return new KernelText(_stext!, size, await hashes(vm, _stext!, size));
  }

  /** Addresses of the pages that are different now. */
  async changes(vm: LinuxGuest): Promise<string[]> {
    const now = await hashes(vm, this.#start, this.#size);
    return now.flatMap((hash, i) =>
      hash === this.#pages[i] ? [] : [`0x${(this.#start + BigInt(i * 4096)).toString(16)}`],
    );
  }
}

/** A hash of each page; QEMU reads by virtual address, through the page tables of a vCPU. */
async function hashes(vm: LinuxGuest, start: bigint, size: number): Promise<string[]> {
  const file = join(vm.directory, 'kernel-text');
  await vm.monitor.hmp(`memsave 0x${start.toString(16)} ${size} "${file}"`);
  const bytes = readFileSync(file);
  rmSync(file);
  return Array.from({ length: Math.ceil(size / 4096) }, (_, i) =>
    createHash('sha1')
      .update(bytes.subarray(i * 4096, (i + 1) * 4096))
      .digest('hex'),
  );
}

import { readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { QmpConnection } from '../../src/drivers/qemu/qmp.ts';
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

/** A QEMU that can be asked for guest memory, and a directory that it can write to. */
export interface Shown {
  readonly monitor: Pick<QmpConnection, 'hmp'>;
  readonly directory: string;
}

/** The kernel's text as QEMU's own `memsave` shows it, to be compared with itself later. */
export class KernelText {
  readonly #start: bigint;
  readonly #bytes: Buffer;

  private constructor(start: bigint, bytes: Buffer) {
    this.#start = start;
    this.#bytes = bytes;
  }

  static async of(vm: LinuxGuest): Promise<KernelText> {
    const { _stext, _etext } = await symbolsOf(vm, ['_stext', '_etext']);
    return KernelText.between(vm, _stext!, _etext!);
  }

  static async between(vm: Shown, start: bigint, end: bigint): Promise<KernelText> {
    return new KernelText(start, await saved(vm, start, Number(end - start)));
  }

  /** Addresses of the bytes that are different now. */
  async changes(vm: Shown): Promise<string[]> {
    const now = await saved(vm, this.#start, this.#bytes.length);
    if (now.equals(this.#bytes)) return [];
    return [...now.keys()]
      .filter((at) => now[at] !== this.#bytes[at])
      .map((at) => `0x${(this.#start + BigInt(at)).toString(16)}`);
  }
}

/** QEMU reads by virtual address, through the page tables of a vCPU. */
async function saved(vm: Shown, start: bigint, size: number): Promise<Buffer> {
  const file = join(vm.directory, 'kernel-text');
  await vm.monitor.hmp(`memsave 0x${start.toString(16)} ${size} "${file}"`);
  const bytes = readFileSync(file);
  rmSync(file);
  return bytes;
}

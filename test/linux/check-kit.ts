import assert from 'node:assert/strict';
import { Linux } from '../../src/linux/index.ts';
import { translate, writeVirtual } from '../../src/machine/index.ts';
import type { KernelSeries } from '../kit/debian-kernel.ts';
import { type BusyGuest, bootBusyGuest, shutDown } from './guest-kit.ts';

/** A busy guest whose kernel memory a test changes, as a rootkit would. */
export class TamperedGuest {
  readonly busy: BusyGuest;
  readonly linux: Linux;

  private constructor(busy: BusyGuest, linux: Linux) {
    this.busy = busy;
    this.linux = linux;
  }

  static async boot(series: KernelSeries): Promise<TamperedGuest> {
    const busy = await bootBusyGuest(series);
    return new TamperedGuest(busy, await Linux.find(busy.memory, { cache: false }));
  }

  shutDown(): Promise<void> {
    return shutDown(this.busy);
  }

  async write(address: bigint, bytes: Uint8Array): Promise<void> {
    const { memory } = this.busy;
    assert.ok(
      await writeVirtual(memory, this.linux.kernel.paging, address, bytes),
      'the guest can be written',
    );
  }

  async read(address: bigint, size: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(size);
    const gpa = await translate(this.busy.memory, this.linux.kernel.paging, address);
    assert.ok(gpa !== undefined && (await this.busy.memory.read(gpa, bytes)), 'the guest can be read');
    return bytes;
  }

  async pointer(address: bigint): Promise<bigint> {
    return Buffer.from(await this.read(address, 8)).readBigUInt64LE(0);
  }

  /** Writes with the guest stopped, looks, and takes every change back. */
  async whileChanged(
    changes: readonly (readonly [address: bigint, bytes: Uint8Array])[],
    look: () => Promise<void>,
  ): Promise<void> {
    await this.busy.guest.monitor.execute('stop');
    const before: [bigint, Uint8Array][] = [];
    try {
      for (const [address, bytes] of changes) {
        before.unshift([address, await this.read(address, bytes.length)]);
        await this.write(address, bytes);
      }
      await look();
    } finally {
      for (const [address, bytes] of before) await this.write(address, bytes);
      await this.busy.guest.monitor.execute('cont');
    }
  }

  /** What has to be written to take an entry out of a circular list. */
  async unlinking(link: bigint): Promise<[bigint, Uint8Array][]> {
    const next = await this.pointer(link);
    const previous = await this.pointer(link + 8n);
    return [
      [previous, u64(next)],
      [next + 8n, u64(previous)],
    ];
  }
}

export function u64(value: bigint): Uint8Array {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt.asUintN(64, value));
  return bytes;
}

/** `opcode`, and the distance from behind it to `target`. */
export function branch(opcode: number, address: bigint, target: bigint): Uint8Array {
  const bytes = Buffer.alloc(5);
  bytes[0] = opcode;
  bytes.writeInt32LE(Number(BigInt.asIntN(64, target - address - 5n)), 1);
  return bytes;
}

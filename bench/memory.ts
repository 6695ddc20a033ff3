import { putU64 } from '../src/abi/bytes.ts';
import { bytesBackend, cached, RegionMemory, readVirtual, Tlb, translate } from '../src/machine/index.ts';

import { type Measurement, ratePerSecond, type Suite } from './measurement.ts';

const bytes = new Uint8Array(0x100000);
const memory = new RegionMemory([
  { gpa: 0, size: 0x80000, readonly: false, backend: bytesBackend(bytes.subarray(0, 0x80000)) },
  { gpa: 0x80000, size: 0x80000, readonly: false, backend: bytesBackend(bytes.subarray(0x80000)) },
]);
const gva = 0xffff_8881_2345_6000n;
const paging = { mode: '4-level', root: 0x1000, nx: true } as const;
for (const [level, shift] of [39n, 30n, 21n, 12n].entries()) {
  putU64(bytes, 0x1000 * (level + 1) + Number((gva >> shift) & 511n) * 8, BigInt(0x1000 * (level + 2)) | 3n);
}

const eight = new Uint8Array(8);
const page = new Uint8Array(4096);
const tlb = new Tlb(memory);
const cache = cached(memory, { pages: 64 });

const WORK: readonly (readonly [string, () => unknown])[] = [
  ['RegionMemory.read, 8 bytes', () => memory.read(0x5120, eight)],
  ['RegionMemory.read, 8 bytes across regions', () => memory.read(0x80000 - 4, eight)],
  ['RegionMemory.read, 4 KiB', () => memory.read(0x5000, page)],
  ['translate, 4 levels', () => translate(memory, paging, gva)],
  ['translate, 4 levels, with a TLB', () => tlb.translate(paging, gva)],
  ['translate, 4 levels, with a page cache', () => translate(cache, paging, gva)],
  ['readVirtual, 8 bytes', () => readVirtual(memory, paging, gva, eight)],
  ['readVirtual, 8 bytes, with a TLB', () => readVirtual(memory, paging, gva, eight, tlb)],
  ['cached read, 8 bytes', () => cache.read(0x5120, eight)],
];

/** Guest memory in this process, without any machine. */
export const memorySuite: Suite = {
  name: 'memory',
  async run() {
    return WORK.map(([name, work]): Measurement => {
      const rate = ratePerSecond((count) => {
        for (let i = 0; i < count; i++) work();
      }, 150);
      return { name, value: rate / 1e6, unit: 'M/s' };
    });
  },
};

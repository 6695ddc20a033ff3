import { putU64 } from '../src/abi/bytes.ts';
import { bytesBackend, RegionMemory, readVirtual, translate } from '../src/machine/index.ts';

/** Prints how often `work` can be done in a second: the best of several runs. */
function measure(name: string, work: () => unknown): void {
  const COUNT = 200_000;
  let best = Number.POSITIVE_INFINITY;
  for (let run = 0; run < 8; run++) {
    const start = process.hrtime.bigint();
    for (let i = 0; i < COUNT; i++) work();
    best = Math.min(best, Number(process.hrtime.bigint() - start) / COUNT);
  }
  console.log(
    `${name.padEnd(48)} ${best.toFixed(1).padStart(8)} ns ${(1e3 / best).toFixed(2).padStart(8)} M/s`,
  );
}

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
measure('RegionMemory.read, 8 bytes', () => memory.read(0x5120, eight));
measure('RegionMemory.read, 8 bytes across regions', () => memory.read(0x80000 - 4, eight));
measure('RegionMemory.read, 4096 bytes', () => memory.read(0x5000, page));
measure('translate, 4 levels', () => translate(memory, paging, gva));
measure('readVirtual, 8 bytes', () => readVirtual(memory, paging, gva, eight));

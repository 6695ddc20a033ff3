import { deflateSync } from 'node:zlib';
import { loadZstd } from '../../src/drivers/snapshot/zstd.ts';

const PAGE = 4096;

/** Snappy and LZO of literals alone; flags are those of the descriptors of pages. */
const PACK: Readonly<Record<number, (page: Uint8Array) => Uint8Array>> = {
  0: (page) => page,
  1: (page) => deflateSync(page),
  2: (page) => Buffer.concat([lzoRun(page.length - 3), page, Buffer.from([0x11, 0, 0])]),
  4: (page) => Buffer.concat([Buffer.from([0x80, 0x20, 61 << 2, 0xff, 0x0f]), page]),
  32: () => ZSTD_PAGE,
};

function lzoRun(length: number): Buffer {
  const zeros = Math.floor((length - 15 - 1) / 255);
  return Buffer.from([0, ...Array<number>(zeros).fill(0), length - 15 - 255 * zeros]);
}

/** What packs with Zstandard answers later; these files have one such page. */
const ZSTD_PAGE = await loadZstd().compress(new Uint8Array(PAGE).fill(9));

/** A kdump file of these pages, packed as the flag says; with 0x20 each of them is filled with 9. */
export function kdump(pages: ReadonlyMap<number, Uint8Array>, maxPages: number, flag = 1): Buffer {
  const header = Buffer.alloc(PAGE);
  header.write('KDUMP   ', 0, 'latin1');
  header.writeInt32LE(6, 8);
  header.writeInt32LE(PAGE, 428);
  header.writeInt32LE(1, 432);
  header.writeUInt32LE(2, 436);
  header.writeUInt32LE(maxPages, 440);
  const sub = Buffer.alloc(PAGE);
  sub.writeBigUInt64LE(BigInt(maxPages), 96);
  const bitmap = Buffer.alloc(PAGE);
  for (const page of pages.keys()) bitmap[page >> 3] = bitmap[page >> 3]! | (1 << (page & 7));
  const descriptors = Buffer.alloc(24 * pages.size);
  const data: Uint8Array[] = [];
  let offset = 4 * PAGE + descriptors.length;
  [...pages.entries()]
    .sort(([a], [b]) => a - b)
    .forEach(([, page], i) => {
      const packed = PACK[flag]!(page);
      descriptors.writeBigUInt64LE(BigInt(offset), 24 * i);
      descriptors.writeUInt32LE(packed.length, 24 * i + 8);
      descriptors.writeUInt32LE(flag, 24 * i + 12);
      data.push(packed);
      offset += packed.length;
    });
  return Buffer.concat([header, sub, bitmap, bitmap, descriptors, ...data]);
}

/** makedumpfile's flattened form of a file, in pieces written in any order, some twice. */
export function flattened(file: Buffer, pieces: readonly (readonly [start: number, end: number])[]): Buffer {
  const header = Buffer.alloc(PAGE);
  header.write('makedumpfile', 0, 'latin1');
  const parts = pieces.map(([start, end]) => {
    const piece = Buffer.alloc(16);
    piece.writeBigInt64BE(BigInt(start), 0);
    piece.writeBigInt64BE(BigInt(end - start), 8);
    return Buffer.concat([piece, file.subarray(start, end)]);
  });
  return Buffer.concat([header, ...parts, Buffer.alloc(16, 0xff)]);
}

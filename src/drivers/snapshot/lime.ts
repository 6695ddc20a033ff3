import { type DumpContents, damaged, MAX_SEGMENTS, memoryIn, type Segment } from './contents.ts';
import { readPart, type Source } from './file.ts';

/** LiME, version 1: before each range a header with its first and its last address. */
export const LIME_MAGIC = 0x4c694d45;
export const LIME_HEADER = 32;

export function readLime(source: Source): DumpContents {
  const segments: Segment[] = [];
  for (let at = 0; at < source.size && segments.length < MAX_SEGMENTS; ) {
    const header = readPart(source, at, LIME_HEADER);
    if (header === undefined) throw damaged(`a LiME header at ${at} is cut off`);
    if (header.readUInt32LE(0) !== LIME_MAGIC || header.readUInt32LE(4) !== 1)
      throw damaged(`there is no LiME header at ${at}`);
    const gpa = Number(header.readBigUInt64LE(8));
    const size = Number(header.readBigUInt64LE(16)) - gpa + 1;
    if (!(size > 0)) throw damaged(`the LiME range at ${at} ends before it starts`);
    const offset = at + LIME_HEADER;
    segments.push({ gpa, size, offset, fileSize: size });
    at = offset + size;
  }
  return { format: 'lime', ...memoryIn(source, segments), states: [], vmcoreinfo: undefined };
}

/** The header before a range. */
export function limeHeader(gpa: number, size: number): Buffer {
  const header = Buffer.alloc(LIME_HEADER);
  header.writeUInt32LE(LIME_MAGIC, 0);
  header.writeUInt32LE(1, 4);
  header.writeBigUInt64LE(BigInt(gpa), 8);
  header.writeBigUInt64LE(BigInt(gpa + size - 1), 16);
  return header;
}

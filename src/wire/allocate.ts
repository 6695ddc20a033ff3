const CHUNK_SIZE = 256 * 1024;
const LARGEST = 16 * 1024;

let chunk = new ArrayBuffer(CHUNK_SIZE);
let used = 0;

/**
 * `size` zero bytes for a message. Small messages share a chunk of memory, which is never used twice:
 * cheaper than an allocation each, and as safe to keep.
 */
export function allocate(size: number): Uint8Array {
  if (size > LARGEST) return new Uint8Array(size);
  if (used + size > CHUNK_SIZE) {
    chunk = new ArrayBuffer(CHUNK_SIZE);
    used = 0;
  }
  const bytes = new Uint8Array(chunk, used, size);
  used += (size + 7) & ~7;
  return bytes;
}

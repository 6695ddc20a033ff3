import assert from 'node:assert/strict';
import { putRegister, STATE_SIZE } from '../../src/abi/state.ts';
import { bytesBackend, type PhysicalMemory, RegionMemory } from '../../src/machine/index.ts';

const PAGE = 4096;
const MEBIBYTE = 1 << 20;

/** Two regions with a hole between them; most of the first one is zeros, its last byte is 0xee. */
export function dumpedMemory(): RegionMemory {
  const low = new Uint8Array(10 * MEBIBYTE);
  for (let i = 0; i < 2 * PAGE; i++) low[6 * MEBIBYTE + i] = i * 7 + 1;
  low[low.length - 1] = 0xee;
  const high = Uint8Array.from({ length: 5 * PAGE }, (_, i) => i % 251);
  return new RegionMemory([
    { gpa: 0, size: low.length, readonly: false, backend: bytesBackend(low) },
    { gpa: 16 * MEBIBYTE, size: high.length, readonly: false, backend: bytesBackend(high) },
  ]);
}

export async function contents(from: PhysicalMemory, gpa: number, size: number): Promise<string> {
  const bytes = new Uint8Array(size);
  assert.ok(await from.read(gpa, bytes), `${size} bytes at 0x${gpa.toString(16)} are there`);
  return Buffer.from(bytes).toString('base64');
}

/** Where {@link dumpedMemory} holds something, and the borders of it. */
export async function assertSameMemory(actual: PhysicalMemory, expected: PhysicalMemory): Promise<void> {
  for (const [gpa, size] of [
    [0, PAGE],
    [6 * MEBIBYTE - 100, 3 * PAGE],
    [10 * MEBIBYTE - 16, 16],
    [16 * MEBIBYTE, 5 * PAGE],
    [16 * MEBIBYTE + 1, 7],
  ] as const)
    assert.equal(
      await contents(actual, gpa, size),
      await contents(expected, gpa, size),
      `at 0x${gpa.toString(16)}`,
    );
}

/** The state of a vCPU, with something in every byte. */
export function stateAt(rip: bigint): Uint8Array {
  const bytes = Uint8Array.from({ length: STATE_SIZE }, (_, i) => i * 3);
  putRegister(bytes, 'rip', rip);
  return bytes;
}

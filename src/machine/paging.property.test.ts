import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { later } from '../../test/kit/memory.ts';
import { getU32, getU64 } from '../abi/bytes.ts';
import { bytesBackend, type Paging, RegionMemory, readVirtual, translate, walk } from './index.ts';

const PAGES = 16;
const SIZE = PAGES * 4096;

const bit = (value: bigint, n: number): boolean => ((value >> BigInt(n)) & 1n) === 1n;
const bits = (value: bigint, from: number, to: number): bigint =>
  (value >> BigInt(to)) & ((1n << BigInt(from - to + 1)) - 1n);

/** Translation written down mode by mode, as the manual does it (SDM vol. 3, 4.3 to 4.5). Slow and plain. */
function reference(bytes: Uint8Array, { mode, root, nx }: Paging, gva: bigint): bigint | undefined {
  const entry = (table: bigint, index: bigint, size: 4 | 8): bigint => {
    const at = Number(table) + Number(index) * size;
    if (at + size > bytes.length) return 0n;
    return size === 4 ? BigInt(getU32(bytes, at)) : getU64(bytes, at);
  };
  const next = (value: bigint): bigint => bits(value, 51, 12) << 12n;
  const top = BigInt(root);

  if (mode === 'none') return gva < 1n << 32n ? gva : undefined;

  if (mode === '32-bit' || mode === '32-bit-pse') {
    if (gva >= 1n << 32n) return undefined;
    const pde = entry(top, bits(gva, 31, 22), 4);
    if (!bit(pde, 0)) return undefined;
    if (mode === '32-bit-pse' && bit(pde, 7)) {
      if (bit(pde, 21)) return undefined;
      return (bits(pde, 20, 13) << 32n) | (bits(pde, 31, 22) << 22n) | bits(gva, 21, 0);
    }
    const pte = entry(next(pde), bits(gva, 21, 12), 4);
    return bit(pte, 0) ? next(pte) | bits(gva, 11, 0) : undefined;
  }

  const executeBitIsWrong = (value: bigint) => !nx && bit(value, 63);
  let pdpte: bigint;
  if (mode === 'pae') {
    if (gva >= 1n << 32n) return undefined;
    pdpte = entry(top, bits(gva, 31, 30), 8);
    if (!bit(pdpte, 0)) return undefined;
    if (bits(pdpte, 2, 1) !== 0n || bits(pdpte, 8, 5) !== 0n || bits(pdpte, 63, 52) !== 0n) return undefined;
  } else {
    const width = mode === '4-level' ? 48 : 57;
    if (BigInt.asUintN(64, BigInt.asIntN(width, gva)) !== gva) return undefined;
    let pml4 = top;
    if (mode === '5-level') {
      const pml5e = entry(top, bits(gva, 56, 48), 8);
      if (!bit(pml5e, 0) || bit(pml5e, 7) || executeBitIsWrong(pml5e)) return undefined;
      pml4 = next(pml5e);
    }
    const pml4e = entry(pml4, bits(gva, 47, 39), 8);
    if (!bit(pml4e, 0) || bit(pml4e, 7) || executeBitIsWrong(pml4e)) return undefined;
    pdpte = entry(next(pml4e), bits(gva, 38, 30), 8);
    if (!bit(pdpte, 0) || executeBitIsWrong(pdpte)) return undefined;
    if (bit(pdpte, 7)) {
      return bits(pdpte, 29, 13) === 0n ? (bits(pdpte, 51, 30) << 30n) | bits(gva, 29, 0) : undefined;
    }
  }
  const wrong = (value: bigint) => executeBitIsWrong(value) || (mode === 'pae' && bits(value, 62, 52) !== 0n);
  const pde = entry(next(pdpte), bits(gva, 29, 21), 8);
  if (!bit(pde, 0) || wrong(pde)) return undefined;
  if (bit(pde, 7)) {
    return bits(pde, 20, 13) === 0n ? (bits(pde, 51, 21) << 21n) | bits(gva, 20, 0) : undefined;
  }
  const pte = entry(next(pde), bits(gva, 20, 12), 8);
  return bit(pte, 0) && !wrong(pte) ? next(pte) | bits(gva, 11, 0) : undefined;
}

/** Bytes that look enough like page tables for walks to get far, with every kind of garbage among them. */
function garbage(seed: number, entrySize: 4 | 8, flips: number): Uint8Array {
  const bytes = new Uint8Array(SIZE);
  let x = seed | 1;
  const random = () => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return x >>> 0;
  };
  for (let at = 0; at < SIZE; at += entrySize) {
    const large = random() % 8 === 0;
    bytes[at] =
      (random() % 16 === 0 ? 0 : 1) | (random() % 4 === 0 ? random() & 0x66 : 0) | (large ? 0x80 : 0);
    bytes[at + 1] = large && random() % 4 !== 0 ? 0 : (random() % PAGES) << 4;
    // A bit that does not belong there, now and then.
    if (random() % 16 < flips) bytes[at + (random() % entrySize)]! ^= 1 << (random() % 8);
  }
  return bytes;
}

const mode = fc.constantFrom<Paging['mode']>('none', '32-bit', '32-bit-pse', 'pae', '4-level', '5-level');
/** Any address, most of them canonical in one mode or another. */
const gva = fc
  .tuple(fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }), fc.constantFrom(32, 32, 48, 48, 57, 64), fc.boolean())
  .map(([value, width, high]) =>
    high ? BigInt.asUintN(64, BigInt.asIntN(width, value)) : BigInt.asUintN(width, value),
  );
const machine = fc.record({
  mode,
  nx: fc.boolean(),
  root: fc.oneof(
    fc.nat(PAGES).map((page) => page * 4096),
    fc.constantFrom(0x20, 2 ** 51, 2 ** 52 - 4096),
  ),
  seed: fc.integer(),
  flips: fc.nat(3),
  gvas: fc.array(gva, { minLength: 10, maxLength: 40 }),
});

function memoryOf(bytes: Uint8Array): RegionMemory {
  return new RegionMemory([{ gpa: 0, size: SIZE, readonly: false, backend: bytesBackend(bytes) }]);
}

test('translate agrees with the manual on any tables, synchronously and not', async () => {
  let mapped = 0;
  await fc.assert(
    fc.asyncProperty(machine, async ({ mode, nx, root, seed, flips, gvas }) => {
      const bytes = garbage(seed, mode.startsWith('32-bit') ? 4 : 8, flips);
      const memory = memoryOf(bytes);
      const paging = { mode, root: mode === 'pae' ? root : root - (root % 4096), nx };
      for (const gva of gvas) {
        const expected = reference(bytes, paging, gva);
        const number = expected === undefined ? undefined : Number(expected);
        if (expected !== undefined && mode !== 'none') mapped++;
        assert.equal(translate(memory, paging, gva), number, `${mode} 0x${gva.toString(16)}`);
        assert.equal(await translate(later(memory), paging, gva), number, `${mode}, later`);
        assert.equal((await walk(later(memory), paging, gva)).gpa, number, `${mode}, walk`);
      }
    }),
    { numRuns: 400 },
  );
  assert.ok(mapped > 200, `only ${mapped} addresses were mapped: the tables are too poor to test anything`);
});

test('readVirtual agrees with translate, byte by byte', async () => {
  const length = fc.integer({ min: 0, max: 9000 });
  let filled = 0;
  await fc.assert(
    fc.asyncProperty(machine, length, async ({ mode, nx, seed, gvas }, length) => {
      const bytes = garbage(seed, mode.startsWith('32-bit') ? 4 : 8, 0);
      const memory = memoryOf(bytes);
      const paging = { mode, root: 0, nx };
      for (const gva of gvas.slice(0, 4)) {
        const expected = new Uint8Array(length);
        let backed = true;
        for (let i = 0; i < length && backed; i++) {
          const at = gva + BigInt(i) < 1n << 64n ? reference(bytes, paging, gva + BigInt(i)) : undefined;
          backed = at !== undefined && at < SIZE;
          if (backed) expected[i] = bytes[Number(at)]!;
        }
        const into = new Uint8Array(length);
        assert.equal(readVirtual(memory, paging, gva, into), backed, `${mode} 0x${gva.toString(16)}`);
        if (!backed) continue;
        if (length > 0) filled++;
        assert.deepEqual(into, expected);
        assert.equal(await readVirtual(later(memory), paging, gva, into.fill(0)), true);
        assert.deepEqual(into, expected);
      }
    }),
    { numRuns: 150 },
  );
  assert.ok(filled > 5, `only ${filled} ranges were mapped: the tables are too poor to test anything`);
});

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { btfImage } from '../../test/kit/btf-image.ts';
import { cpuTime } from '../../test/kit/cpu-time.ts';
import { KvmiError } from '../error.ts';
import { Btf } from './btf.ts';
import { fieldOf, sizeOf, strip } from './types.ts';

const STRUCTS = {
  inner: { size: 8, members: { low: [0, 'u32'], high: [4, 's32'] } },
  outer: {
    size: 64,
    members: {
      name: [0, 'char[16]'],
      pointer: [16, 'void *'],
      parts: [24, 'struct inner[4]'],
      last: [60, 'u16'],
    },
  },
} as const;

/** BTF of a module with one structure of one member; its strings go on after the kernel's. */
function moduleImage(kernel: Buffer, name: string, member: string, type: number, offset: number): Buffer {
  const strings = Buffer.from(`\0${name}\0${member}\0`);
  const first = kernel.readUInt32LE(20) + 1;
  const words = [24, 0, 24, 24, strings.length, first, (4 << 24) | 1, offset + 8];
  words.push(first + name.length + 1, type, offset * 8);
  const image = Buffer.alloc(4 * (words.length + 1));
  image.writeUInt16LE(0xeb9f, 0);
  image.writeUInt8(1, 2);
  for (const [i, word] of words.entries()) image.writeUInt32LE(word, 4 * (i + 1));
  return Buffer.concat([image, strings]);
}

describe('BTF', () => {
  test('fields are found by path, in nested structures and arrays', () => {
    const btf = new Btf(btfImage(STRUCTS));
    const outer = btf.find('outer')!;
    assert.equal(sizeOf(outer), 64);
    assert.deepEqual(fieldOf(outer, 'name'), { offset: 0, size: 16, signed: false });
    assert.deepEqual(fieldOf(outer, 'parts[3].high'), { offset: 52, size: 4, signed: true });
    assert.equal(fieldOf(outer, 'parts[3].none'), undefined);
    assert.equal(fieldOf(outer, 'name.none'), undefined);
    assert.equal(fieldOf(outer, 'not a path'), undefined);
    assert.equal(btf.find('none'), undefined);
    assert.deepEqual([...btf.names()].includes('inner'), true);
  });

  test("a module's types come before the kernel's, and are made of them", () => {
    const kernel = new Btf(btfImage(STRUCTS));
    const inner = [...Array(kernel.endId).keys()].find((id) => kernel.type(id) === kernel.find('inner'))!;
    const module = new Btf(moduleImage(btfImage(STRUCTS), 'outer', 'part', inner, 24), kernel);
    assert.deepEqual(fieldOf(module.find('outer')!, 'part.high'), { offset: 28, size: 4, signed: true });
    assert.equal(fieldOf(module.find('outer')!, 'last'), undefined);
    assert.equal(fieldOf(module.find('inner')!, 'high')?.offset, 4);
  });

  test('what is none is refused', () => {
    for (const bytes of [new Uint8Array(), new Uint8Array(100), btfImage(STRUCTS).subarray(0, 40)])
      assert.throws(() => new Btf(bytes), { code: 'E_BTF' });
  });

  test('a kind that is not known cuts it, and says so', () => {
    const bytes = btfImage(STRUCTS);
    bytes[24 + 16 * 3 + 7] = 31;
    const btf = new Btf(bytes);
    assert.match(btf.cut ?? '', /not known \(31\)/);
  });

  test('types that contain themselves end', () => {
    const bytes = btfImage({
      loop: { size: 8, members: { next: [0, 'struct loop2'] } },
      loop2: { size: 8, members: {} },
    });
    const btf = new Btf(bytes);
    assert.ok(sizeOf(btf.find('loop')!) === 8);
    for (let id = 0; id < 40; id++) assert.ok(strip(btf.type(id)).kind !== undefined);
  });

  test('damage gives an answer or a KvmiError, soon', () => {
    const image = btfImage(STRUCTS);
    const change = fc.tuple(fc.nat(image.length - 4), fc.nat(0xffffffff));
    fc.assert(
      fc.property(fc.array(change, { minLength: 1, maxLength: 10 }), (changes) => {
        const bytes = Buffer.from(image);
        for (const [at, value] of changes) bytes.writeUInt32LE(value, at);
        const start = cpuTime();
        try {
          const btf = new Btf(bytes);
          for (const name of btf.names()) {
            const type = btf.find(name)!;
            sizeOf(type);
            fieldOf(type, 'parts[3].high');
            fieldOf(type, 'name');
          }
        } catch (error) {
          if (!(error instanceof KvmiError)) throw error;
        }
        assert.ok(cpuTime() - start < 1000);
      }),
      { numRuns: 500 },
    );
  });
});

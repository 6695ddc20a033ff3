import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { putU32, putU64 } from '../abi/bytes.ts';
import { sockFilter } from '../abi/kvm.ts';
import { notificationFilter } from '../run/seccomp-filter.ts';
import { runClassicBpf } from './classic-bpf.ts';

type Instruction = readonly [code: number, jt: number, jf: number, k: number];

function program(...instructions: readonly Instruction[]): Uint8Array {
  const bytes = new Uint8Array(instructions.length * sockFilter.size);
  instructions.forEach(([code, jt, jf, k], i) => {
    sockFilter.write(bytes, i * sockFilter.size, { code, jt, jf, k });
  });
  return bytes;
}

function data(nr: number, ...args: readonly number[]): Uint8Array {
  const bytes = new Uint8Array(64);
  putU32(bytes, 0, nr);
  putU32(bytes, 4, 0xc000003e);
  args.forEach((argument, i) => {
    putU64(bytes, 16 + 8 * i, BigInt(argument));
  });
  return bytes;
}

describe('classic BPF', () => {
  it('tells what a seccomp filter does with a call', () => {
    const filter = notificationFilter([0x1234], 0xae03, [7]);
    const ALLOW = 0x7fff0000;
    const NOTIFY = 0x7fc00000;
    assert.equal(runClassicBpf(filter, data(16, 3, 0x1234)), NOTIFY);
    assert.equal(runClassicBpf(filter, data(16, 3, 0x1235)), ALLOW);
    assert.equal(runClassicBpf(filter, data(1, 3, 0x1234)), ALLOW);
    assert.equal(runClassicBpf(filter, data(16, 3, 0xae03, 7)), NOTIFY);
    assert.equal(runClassicBpf(filter, data(16, 3, 0xae03, 8)), ALLOW);
  });

  it('computes as the kernel does: 32 bits, unsigned', () => {
    const compute = (code: number, a: number, k: number) =>
      runClassicBpf(program([0x00, 0, 0, a], [code, 0, 0, k], [0x16, 0, 0, 0]), data(0));
    assert.equal(compute(0x04, 0xffffffff, 2), 1, 'add');
    assert.equal(compute(0x14, 1, 2), 0xffffffff, 'subtract');
    assert.equal(compute(0x24, 0x10001, 0x10001), 0x20001, 'multiply');
    assert.equal(compute(0x34, 0xffffffff, 2), 0x7fffffff, 'divide');
    assert.equal(compute(0x64, 1, 31), 0x80000000, 'shift left');
    assert.equal(compute(0x74, 0x80000000, 31), 1, 'shift right');
    assert.equal(compute(0x84, 1, 0), 0xffffffff, 'negate');
  });

  it('keeps words and compares with X', () => {
    const body: Instruction[] = [
      [0x20, 0, 0, 0],
      [0x02, 0, 0, 3],
      [0x61, 0, 0, 3],
      [0x1d, 0, 1, 0],
      [0x06, 0, 0, 1],
      [0x06, 0, 0, 2],
    ];
    assert.equal(runClassicBpf(program(...body), data(99)), 1);
  });

  it('ends whatever the program is, and returns a word or nothing', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 4096 }), fc.uint8Array({ maxLength: 64 }), (code, input) => {
        const result = runClassicBpf(code, input);
        assert.ok(result === undefined || (Number.isInteger(result) && result >= 0 && result < 2 ** 32));
      }),
    );
  });
});

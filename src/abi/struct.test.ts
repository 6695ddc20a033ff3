import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { getS64, getU64Number, putU64Number } from './bytes.ts';
import { kvmIntrospectionFeature, kvmIntrospectionHook } from './ioctl.ts';
import { decodeState, getRegister, putMode, putRegister, STATE_SIZE } from './state.ts';
import { address, array, byteArray, pad, s32, s64, struct, u8, u16, u32, u64 } from './struct.ts';
import { kvmDtable, kvmMsrEntry, kvmRegs, kvmSegment, kvmSregs, vcpuState } from './x86.ts';

const everything = struct('everything', 56, {
  a: u8,
  padding1: pad(1),
  b: u16,
  c: u32,
  d: u64,
  e: s32,
  f: byteArray(4),
  g: s64,
  h: array(u16, 4),
  i: address,
  padding2: pad(8),
});

const values = fc.record({
  a: fc.nat(0xff),
  b: fc.nat(0xffff),
  c: fc.integer({ min: 0, max: 0xffffffff }),
  d: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
  e: fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 }),
  f: fc.uint8Array({ minLength: 4, maxLength: 4 }),
  g: fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }),
  h: fc.array(fc.nat(0xffff), { minLength: 4, maxLength: 4 }),
  i: fc.maxSafeNat(),
});

describe('structures as tables', () => {
  test('decoding takes back what encoding wrote, at any alignment', () => {
    fc.assert(
      fc.property(values, fc.nat(7), (value, at) => {
        const bytes = new Uint8Array(at + everything.size).fill(0xee);
        everything.write(bytes, at, value);
        assert.deepEqual(everything.read(bytes, at), { ...value });
        assert.equal(everything.hasPadding(bytes, at), false, 'padding is written as zero');
      }),
    );
  });

  test('any padding byte that is not zero is found', () => {
    for (const offset of [1, ...Array.from({ length: 8 }, (_, i) => 48 + i)]) {
      const bytes = new Uint8Array(everything.size);
      bytes[offset] = 1;
      assert.equal(everything.hasPadding(bytes, 0), true, `offset ${offset}`);
    }
  });

  test('padding in nested structures is found', () => {
    const bytes = new Uint8Array(kvmSregs.size);
    bytes[kvmSregs.offsetOf('gdt') + 12] = 1;
    assert.equal(kvmSregs.hasPadding(bytes, 0), true);
  });

  test('a table that does not add up to its size is refused', () => {
    assert.throws(() => struct('wrong', 9, { a: u64 }), /8 bytes, not 9/);
  });

  test('addresses are exact below 2^53, and all-ones is 2^64', () => {
    const bytes = new Uint8Array(8);
    for (const value of [0, 1, 2 ** 32, 2 ** 52 - 1, Number.MAX_SAFE_INTEGER]) {
      putU64Number(bytes, 0, value);
      assert.equal(getU64Number(bytes, 0), value);
    }
    putU64Number(bytes, 0, 2 ** 64);
    assert.ok(bytes.every((byte) => byte === 0xff));
    assert.equal(getU64Number(bytes, 0), 2 ** 64);
    assert.equal(getS64(bytes, 0), -1n);
  });
});

describe('structures of the kernel', () => {
  test('sizes and offsets are those of the public headers', () => {
    const sizes = { kvmRegs, kvmSegment, kvmDtable, kvmSregs, kvmMsrEntry, vcpuState, kvmIntrospectionHook };
    const expected = [144, 24, 16, 312, 16, 536, 24];
    assert.deepEqual(
      Object.values(sizes).map(({ size }) => size),
      expected,
    );
    assert.equal(kvmIntrospectionFeature.size, 8);
    assert.equal(kvmRegs.offsetOf('rip'), 128);
    assert.equal(kvmSegment.offsetOf('unusable'), 22);
    assert.deepEqual(
      (['tr', 'gdt', 'cr0', 'cr3', 'efer', 'interrupt_bitmap'] as const).map((name) =>
        kvmSregs.offsetOf(name),
      ),
      [144, 192, 224, 240, 264, 280],
    );
    assert.deepEqual(
      (['regs', 'sregs', 'msrs'] as const).map((name) => vcpuState.offsetOf(name)),
      [8, 152, 464],
    );
  });

  test('the mode of a state block follows EFER.LMA, cs.l and cs.db', () => {
    const state = new Uint8Array(STATE_SIZE);
    const cs = 152;
    const modeWith = (efer: bigint, l: number, db: number): number => {
      putRegister(state, 'efer', efer);
      state[cs + 19] = l;
      state[cs + 17] = db;
      putMode(state);
      return decodeState(state).mode;
    };
    const LMA = 1n << 10n;
    assert.deepEqual(
      [modeWith(LMA, 1, 0), modeWith(LMA, 0, 1), modeWith(LMA, 0, 0), modeWith(0n, 0, 1), modeWith(0n, 1, 0)],
      [8, 4, 2, 4, 2],
    );
  });

  test('a register is read and written in place', () => {
    const state = new Uint8Array(STATE_SIZE);
    putRegister(state, 'r11', 0x1122334455667788n);
    putRegister(state, 'cr3', 0x1000n);
    assert.equal(getRegister(state, 'r11'), 0x1122334455667788n);
    assert.equal(decodeState(state).regs.r11, 0x1122334455667788n);
    assert.equal(decodeState(state).sregs.cr3, 0x1000n);
  });
});

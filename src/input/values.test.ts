import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { address, commaList, hexBytes, integer, oneOf, parseNumber, place, seconds } from './values.ts';

const USAGE = { code: 'E_USAGE' };

test('numbers are decimal or hexadecimal, with suffixes for powers of 1024', () => {
  const expected: Record<string, bigint> = {
    '0': 0n,
    '4096': 4096n,
    '0x1000': 0x1000n,
    '4k': 4096n,
    '4K': 4096n,
    '4KiB': 4096n,
    '2M': 2n << 20n,
    '1G': 1n << 30n,
    '0x10k': 0x4000n,
    '0xffffffffffffffff': 2n ** 64n - 1n,
  };
  for (const [text, value] of Object.entries(expected)) assert.equal(parseNumber(text), value, text);
  for (const text of ['', 'x', '-1', '1.5', '0x', '1e3', '12q', '0xg', '１']) {
    assert.equal(parseNumber(text), undefined, text);
  }
});

test('an address is read back from how it is printed', () => {
  fc.assert(
    fc.property(fc.bigInt(0n, 2n ** 64n - 1n), (value) => {
      assert.equal(address(`0x${value.toString(16)}`), value);
      assert.equal(address(value.toString()), value);
    }),
  );
  assert.throws(() => address('0x10000000000000000'), USAGE);
  assert.throws(() => address('main'), USAGE);
});

test('integers have bounds', () => {
  const parse = integer('N', 1, 8);
  assert.equal(parse('8'), 8);
  for (const text of ['0', '9', '', 'x']) assert.throws(() => parse(text), USAGE, text);
});

test('seconds are milliseconds inside', () => {
  const parse = seconds('--timeout');
  assert.equal(parse('1.5'), 1500);
  for (const text of ['0', '-1', '', 'x', '1e9', '99999999']) assert.throws(() => parse(text), USAGE, text);
});

test('bytes may be grouped', () => {
  for (const text of ['90cc', '90 cc', '0x90CC', '90:cc', '90_cc']) {
    assert.deepEqual(hexBytes(text), Uint8Array.of(0x90, 0xcc), text);
  }
  for (const text of ['', '9', '90c', 'zz', '0x']) assert.throws(() => hexBytes(text), USAGE, text);
});

test('lists and words', () => {
  assert.deepEqual(commaList('a, b,,c'), ['a', 'b', 'c']);
  assert.equal(oneOf('--color', ['auto', 'never'])('never'), 'never');
  assert.throws(() => oneOf('--color', ['auto', 'never'])('red'), { message: /auto, never/ });
});

test('a place is an address, or a symbol with an offset', () => {
  assert.deepEqual(place('0x1000'), { symbol: undefined, offset: 0x1000n });
  assert.deepEqual(place('4096'), { symbol: undefined, offset: 4096n });
  assert.deepEqual(place('do_sys_openat2'), { symbol: 'do_sys_openat2', offset: 0n });
  assert.deepEqual(place('x.cold+0x10'), { symbol: 'x.cold', offset: 16n });
  for (const text of ['', '12zz', 'a b', 'a+', 'a+b', '+5', 'a-1'])
    assert.throws(() => place(text), USAGE, text);
});

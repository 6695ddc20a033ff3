import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MTRR_MSRS, mtrrType } from './mtrr.ts';

const [UC, WC, WT, WP, WB] = [0, 1, 4, 5, 6];
const MIB = 2 ** 20;

type Msrs = Readonly<Record<number, bigint>>;

/** The default type; `fixed` and `enabled` are those bits. */
function settings(type: number, { fixed = true, enabled = true } = {}): Msrs {
  return { 767: BigInt(type | (fixed ? 0x400 : 0) | (enabled ? 0x800 : 0)) };
}

/** Variable ranges from number 0 on. */
function ranges(...all: readonly (readonly [base: number, size: number, type: number])[]): Msrs {
  return Object.fromEntries(
    all.flatMap(([base, size, type], i) => [
      [0x200 + 2 * i, BigInt(base + type)],
      [0x201 + 2 * i, (((1n << 40n) - BigInt(size)) & ~0xfffn) | 0x800n],
    ]),
  );
}

const FIXED: Msrs = { 592: 0x06_05_04_01_00_06_06_06n, 601: 0x01n << 56n, 623: 5n << 56n };
const over = (...types: number[]): Msrs => ranges(...types.map((type) => [0, 16 * MIB, type] as const));

const CASES: readonly (readonly [what: string, msrs: Msrs, gpa: number, type: number])[] = [
  ['disabled', { ...settings(WB, { enabled: false }), ...FIXED, ...over(WB) }, 0, UC],
  ['a fixed range, first part', { ...settings(WC), ...FIXED }, 0, WB],
  ['a fixed range, fourth part', { ...settings(WC), ...FIXED }, 0x30000, UC],
  ['a fixed range, last byte', { ...settings(WC), ...FIXED }, 0x7ffff, WB],
  ['a fixed range of 16 KiB', { ...settings(WC), ...FIXED }, 0xbc000, WC],
  ['a fixed range of 4 KiB', { ...settings(WC), ...FIXED }, 0xff000, WP],
  ['fixed ranges before variable ones', { ...settings(WC), ...FIXED, ...over(UC) }, 0, WB],
  ['fixed ranges that are disabled', { ...settings(WC, { fixed: false }), ...FIXED }, 0, WC],
  ['disabled fixed ranges, a variable one', { ...settings(WC, { fixed: false }), ...over(WT) }, 0, WT],
  ['no range', settings(WP), MIB, WP],
  ['a range that is not valid', { ...settings(WP), 512: 4n, 513: 0n }, MIB, WP],
  ['before a range', { ...settings(WB), ...ranges([2 ** 31, 2 ** 31, UC]) }, 2 ** 31 - 1, WB],
  ['the start of a range', { ...settings(WB), ...ranges([2 ** 31, 2 ** 31, UC]) }, 2 ** 31, UC],
  ['after a range', { ...settings(WB), ...ranges([2 ** 31, 2 ** 31, UC]) }, 2 ** 32, WB],
  ['the same type twice', { ...settings(WB), ...over(WC, WC) }, MIB, WC],
  ['UC first', { ...settings(WB), ...over(UC, WB) }, MIB, UC],
  ['UC last, after types whose overlap is not defined', { ...settings(WB), ...over(WC, WP, UC) }, MIB, UC],
  ['WT and WB', { ...settings(WC), ...over(WT, WB) }, MIB, WT],
  ['WB and WT', { ...settings(WC), ...over(WB, WT, WB) }, MIB, WT],
  ['not defined: WC and WT', { ...settings(WC), ...over(WC, WT) }, MIB, WB],
  ['not defined: WP and WB', { ...settings(WC), ...over(WP, WB) }, MIB, WB],
  ['not defined: WT, WB and WP', { ...settings(WC), ...over(WT, WB, WP) }, MIB, WB],
];

for (const [what, msrs, gpa, type] of CASES) {
  test(`memory type: ${what}`, () => {
    const read = (index: number): bigint => {
      assert.ok(MTRR_MSRS.includes(index), `MSR ${index.toString(16)}`);
      return msrs[index] ?? 0n;
    };
    assert.equal(mtrrType(read, gpa), type);
  });
}

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { Column, Row } from './columns.ts';
import { parseFilter } from './filter.ts';

const COLUMNS: readonly Column[] = [
  { name: 'pid', kind: 'decimal', about: '' },
  { name: 'name', kind: 'text', about: '' },
  { name: 'memory', kind: 'size', about: '' },
  { name: 'rip', kind: 'hex', about: '' },
  { name: 'time', kind: 'time', about: '' },
  { name: 'booted', kind: 'date', about: '' },
  { name: 'up', kind: 'boolean', about: '' },
  { name: 'tags', kind: 'list', about: '' },
];

const ROW: Row = {
  pid: 17,
  name: 'web-1',
  memory: 4 * 2 ** 30,
  rip: 0xffffffff81000000n,
  time: BigInt(Date.parse('2026-01-02T03:04:05Z')) * 1_000_000n,
  booted: BigInt(Date.parse('2026-01-02T03:04:05Z')) * 1_000_000n + 123_456_789n,
  up: true,
  tags: ['a', 'b'],
};

const PASSING = [
  'pid=17',
  'pid = 0x11',
  'pid!=18',
  'pid>16',
  'pid<=17',
  'name=web-1',
  'name~^web',
  'name!~db',
  'memory>=4G',
  'memory<5GiB',
  'rip=0xffffffff81000000',
  'rip>0xffffffff80000000',
  'rip~81',
  'time>2026-01-01T00:00:00Z',
  'time=2026-01-02T03:04:05.000000000Z',
  'booted=2026-01-02T03:04:05.123456789Z',
  'booted>2026-01-02T03:04:05.123456788Z',
  'booted~^2026-01-02',
  'up=yes',
  'up=true',
  'tags=b',
];
const FAILING = [
  'pid=18',
  'pid>17',
  'name=web',
  'name~^eb',
  'memory>4G',
  'rip<4096',
  'up=no',
  'tags=c',
  'time<2026-01-01',
  'booted=2026-01-02T03:04:05.123456788Z',
];

for (const text of PASSING) {
  test(`${text} lets the row pass`, () => assert.equal(parseFilter(text, COLUMNS)(ROW), true));
}
for (const text of FAILING) {
  test(`${text} stops the row`, () => assert.equal(parseFilter(text, COLUMNS)(ROW), false));
}

test('an empty cell passes only conditions that exclude something', () => {
  assert.equal(parseFilter('pid=0', COLUMNS)({}), false);
  assert.equal(parseFilter('pid<5', COLUMNS)({}), false);
  assert.equal(parseFilter('pid!=5', COLUMNS)({}), true);
  assert.equal(parseFilter('name!~x', COLUMNS)({}), true);
  assert.equal(parseFilter('up!=no', COLUMNS)({}), true);
});

const WRONG = ['', 'pid', '=5', 'pid>many', 'name>5', 'time>soon', 'name~(', 'nosuch=1', 'pid=', 'memory>4Q'];
for (const text of WRONG) {
  test(`${JSON.stringify(text)} is refused`, () => {
    assert.throws(() => parseFilter(text, COLUMNS), { code: 'E_USAGE' });
  });
}

test('numeric conditions agree with arithmetic', () => {
  fc.assert(
    fc.property(fc.bigInt(0n, 2n ** 64n - 1n), fc.bigInt(0n, 2n ** 64n - 1n), (cell, wanted) => {
      const passes = (operator: string) => parseFilter(`rip${operator}${wanted}`, COLUMNS)({ rip: cell });
      assert.equal(passes('='), cell === wanted);
      assert.equal(passes('<'), cell < wanted);
      assert.equal(passes('>='), cell >= wanted);
    }),
  );
});

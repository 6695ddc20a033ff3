import assert from 'node:assert/strict';
import { test } from 'node:test';
import { cellText } from './columns.ts';
import { type Column, type ColumnOf, csv, json, type Row, renderTable, rowOf, table } from './index.ts';
import { shortDate } from './time.ts';

interface Program {
  readonly pid: number;
  readonly base: bigint;
  readonly words: readonly string[];
}

const PROGRAMS: readonly Program[] = [
  { pid: 7, base: 0xffff_8000_0000_1000n, words: ['sleep', '9'] },
  { pid: 1234, base: 0x1000n, words: ['init'] },
];

const COLUMNS: readonly ColumnOf<Program>[] = [
  { name: 'pid', kind: 'decimal', key: true, about: '' },
  { name: 'command', kind: 'text', cut: true, cell: ({ words }) => words.join(' '), about: '' },
  { name: 'base', kind: 'hex', wide: true, about: '' },
];

async function all(lines: AsyncIterable<string>): Promise<string[]> {
  const found: string[] = [];
  for await (const line of lines) found.push(line);
  return found;
}

test('a program prints items as kvmi does', async () => {
  assert.equal(renderTable(COLUMNS, PROGRAMS), ' PID  COMMAND\n   7  sleep 9\n1234  init');
  assert.match(renderTable(COLUMNS, PROGRAMS, { wide: true }), /0xffff800000001000/);
  assert.equal(renderTable(COLUMNS, []), '');
  const rows = PROGRAMS.map((each) => rowOf(COLUMNS, each));
  assert.deepEqual(await all(table(COLUMNS.slice(0, 1), rows)), [' PID', '   7', '1234']);
  const document = JSON.parse((await all(json(COLUMNS, rows, { reasons: ['x'] }))).join('')) as object;
  assert.deepEqual(document, {
    v: 1,
    rows: [
      { pid: 7, command: 'sleep 9', base: '0xffff800000001000' },
      { pid: 1234, command: 'init', base: '0x1000' },
    ],
    partial: true,
    reasons: ['x'],
  });
  assert.deepEqual(await all(csv(COLUMNS, rows)), [
    'pid,command,base',
    '7,sleep 9,0xffff800000001000',
    '1234,init,0x1000',
  ]);
});

const NARROW: readonly Column[] = [
  { name: 'pid', kind: 'decimal', key: true, about: '' },
  { name: 'name', kind: 'text', cut: true, about: '' },
  { name: 'vmm', kind: 'text', drop: 1, about: '' },
  { name: 'accelerator', kind: 'text', drop: 2, about: '' },
  { name: 'target', kind: 'text', about: '' },
  { name: 'reason', kind: 'text', about: '' },
];
const VM: Row = {
  pid: 1,
  name: 'a name that is long enough to be cut',
  vmm: 'qemu-system-x86_64',
  accelerator: 'kvm',
  target: `qemu:/run/${'x'.repeat(30)}.qmp`,
};

async function headings(width: number): Promise<string[]> {
  const [heading, row] = await all(table(NARROW, [VM], { width }));
  assert.ok(row!.length <= width || width < 60, `${row!.length} > ${width}`);
  assert.ok(row!.includes(String(VM.target)), 'what is copied is whole');
  return heading!.trim().split(/\s+/);
}

test('a narrow terminal: empty columns go, then text is cut, then those of the highest rank', async () => {
  assert.deepEqual(await headings(200), ['PID', 'NAME', 'VMM', 'ACCELERATOR', 'TARGET', 'REASON']);
  assert.deepEqual(await headings(110), ['PID', 'NAME', 'VMM', 'ACCELERATOR', 'TARGET']);
  assert.deepEqual(await headings(100), ['PID', 'NAME', 'VMM', 'TARGET']);
  assert.deepEqual(await headings(70), ['PID', 'NAME', 'TARGET']);
  assert.deepEqual(await headings(20), ['PID', 'NAME', 'TARGET']);
  const [kept] = await all(table(NARROW, [VM], { width: 20, keep: true }));
  assert.match(kept!, /REASON/, 'columns that were asked for stay');
});

test('a time of any day is short for people and exact for programs', () => {
  const at = (time: string) => BigInt(Date.parse(time)) * 1_000_000n;
  const present = new Date('2026-11-28T12:00:00');
  assert.equal(shortDate(at('2026-11-28T09:14:59'), present), '09:14');
  assert.equal(shortDate(at('2026-11-26T09:14:00'), present), 'Nov26');
  assert.equal(shortDate(at('2024-11-26T09:14:00'), present), '2024-11-26');
  assert.equal(shortDate(at('2031-01-02T09:14:00'), present), '2031-01-02');
  assert.doesNotMatch(cellText('date', at('2024-11-26T09:14:00Z')), /:/);
});

test('without a width nothing is cut, and one endless name is not the width of every row', async () => {
  const columns: Column[] = [
    { name: 'name', kind: 'text', about: 'a name', cut: true },
    { name: 'pid', kind: 'decimal', about: 'a number' },
  ];
  const long = 'n'.repeat(5000);
  const lines: string[] = [];
  for await (const each of table(columns, [
    { name: long, pid: 1 },
    { name: 'web', pid: 2 },
  ]))
    lines.push(each);
  assert.ok(lines[1]!.startsWith(long));
  assert.ok(lines[2]!.length < 120, `${lines[2]!.length} characters`);
});
